"""Small downloads of published data sets, byte for byte in the formats of their owners."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

RAW: dict[str, dict[str, bytes]] = {
    "ml-1m": {
        "ratings.dat": b"1::1193::5::978300760\n1::661::3::978302109\n2::1193::1::978298413\n",
        "movies.dat": (
            "661::James and the Giant Peach (1996)::Animation|Children's|Musical\n"
            "1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n"
            '73::Misérables, "Les" (1995)::Drama|Musical\n'
        ).encode("latin-1"),
        "users.dat": b"1::F::1::10::48067\n2::M::56::16::70072-1234\n",
    },
    "ml-10M100K": {
        "ratings.dat": b"1::122::5::838985046\n1::185::4.5::838983525\n3::122::0.5::1136075500\n",
        "movies.dat": (
            "122::Boomerang (1992)::Comedy|Romance\n185::Amélie (2001)::Comedy\n"
            "8606::Pull My Daisy (1958)::(no genres listed)\n"
        ).encode(),
        "tags.dat": (
            b'b::122::"so so::1188263867\n15::185::french::1188263868\n16::185:: French::1188263869\n16::185::art::1\n'
        ),
    },
    "ml-latest-small": {
        "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,31,2.5,1260759144\r\n1,1029,3.0,1260759179\r\n7,31,5,2\n",
        "movies.csv": (
            "movieId,title,genres\r\n31,Dangerous Minds (1995),Drama\r\n"
            '1029,"Good, the Bad and the Ügly, The (1966)",Action|Western\r\n'
            '99,"The ""Untitled""",(no genres listed)\r\n'
        ).encode(),
        "tags.csv": (
            b"userId,movieId,tag,timestamp\r\n15,31,teacher,1\r\n15,31,\"based on, a book\",2\r\n16,31,TEACHER,3\r\n"
            b"15,31, ,4\r\n15,4,not there,5\r\n"
        ),
        "links.csv": b"movieId,imdbId,tmdbId\r\n31,0112792,9909\r\n",
    },
}  # fmt: skip


@pytest.fixture
def raw(tmp_path: Path) -> Callable[..., Path]:
    """Write one of the downloads into a folder, some files changed (None leaves one out), and give the folder."""

    def write(name: str, changes: dict[str, bytes | None] | None = None, top: Path = tmp_path) -> Path:
        folder = top / name
        for file, content in (RAW[name] | (changes or {})).items():
            if content is not None:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content)
        return folder

    return write


@pytest.fixture
def zipped() -> Callable[..., Path]:
    """Pack a folder's files below a folder of its name, as owners do, into a zip file beside it, and give its path."""

    def pack(folder: Path, target: str | None = None) -> Path:
        path = folder.parent / (target or f"{folder.name}.zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{folder.name}/", "")
            for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
                archive.write(file, f"{folder.name}/{file.relative_to(folder)}")
                archive.writestr(f"__MACOSX/{folder.name}/._{file.name}", b"\x00")
                archive.writestr(f"__MACOSX/{folder.name}/{file.name}", b"\x00")
        return path

    return pack
