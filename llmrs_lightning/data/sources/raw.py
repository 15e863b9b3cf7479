"""The files of a data set as its owner publishes them: in a folder, in an archive, or alone."""

from __future__ import annotations

import collections
import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa

from llmrs_lightning.data.sources import faults
from llmrs_lightning.data.sources.faults import Fault
from llmrs_lightning.errors import DataError, listing

_DAMAGE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, RuntimeError)


class RawFiles:
    """Find and read the files of a download; nothing is unpacked to disk.

    Files are found by their name wherever they lie: in the folder, one folder further down, or in a zip file in either;
    or in the zip or tar archive that `path` is. A name also finds its gzipped form (ratings.csv.gz). An archive that is
    read again and again costs its decompression each time: unpack a large one.

    Args:
        path: The folder, archive or file.
        title: The data set's name, for error messages.
        page: Where its owner offers it.
        option: The option that gave the path.
    """

    def __init__(self, path: str, title: str, page: str, option: str = "path") -> None:
        self.path, self.title, self.page, self.option = Path(path).expanduser(), title, page, option
        self.members = self._listed()

    def find(self, name: str, within: str = "") -> str:
        """Name the member called `name`, the one closest to the top.

        Args:
            name: File name without folders; the case of its letters does not count.
            within: What the path inside the download has to contain, such as "train".

        Raises:
            DataError: If there is no such file, or if there are several in different folders.
        """
        found = self._matches(name, within)
        if not found:
            shown = sorted({member.rsplit("/", 1)[-1] for member in self.members})
            inner = [name for name in shown if name.lower().endswith((".zip", ".tar", ".tgz", ".tar.gz"))]
            raise DataError(
                f"{self.title} has no {name}" + (f" in a folder named *{within}*" if within else ""),
                where=f"{self.option}: {self.path}",
                found=listing(shown) if shown else "an empty folder",
                fix=(f"unpack {inner[0]} first (or get it again, if it is damaged), or " if inner else "")
                + f"give the folder or archive that holds it, as {self.page} offers it",
            )
        depth = min(member.count("/") for member in found)
        nearest = [member for member in found if member.count("/") == depth]
        if len({member.removesuffix(".gz") for member in nearest}) > 1:
            raise DataError(
                f"there are several files called {name}",
                where=f"{self.option}: {self.path}",
                found=listing(nearest),
                fix="give the folder of one of them",
            )
        return min(nearest, key=len)

    def only(self) -> str:
        """Name the one file that there is.

        Raises:
            DataError: If there is none, or more than one.
        """
        if len(self.members) != 1:
            raise DataError(
                f"{self.title} is one file here",
                where=f"{self.option}: {self.path}",
                found=listing(sorted(self.members)),
                fix="give the path of the file",
            )
        return next(iter(self.members))

    def has(self, name: str, within: str = "") -> bool:
        """Say whether there is such a file."""
        return bool(self._matches(name, within))

    @contextmanager
    def guarded(self, member: str) -> Iterator[None]:
        """Turn errors of reading a member into a DataError that names it and how far it can be read."""
        try:
            yield
        except Fault as fault:
            raise self.error(fault.what, member, fault.line, fault.found, fault.allowed) from fault
        except (*_DAMAGE, pa.ArrowException, UnicodeDecodeError) as error:
            raise self._damaged(member, error) from error

    @contextmanager
    def stream(self, member: str) -> Iterator[IO[bytes]]:
        """Open a member for reading, decompressed."""
        with self.members[member]() as stream:
            if not member.lower().endswith(".gz"):
                yield stream
                return
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield unpacked  # type: ignore[misc]

    def shown(self, member: str) -> str:
        """Spell a member in an error message."""
        if self.path.is_dir():
            return str(self.path / member)
        return f"{self.path} ({member})" if member not in ("", self.path.name) else str(self.path)

    def error(self, what: str, member: str, line: int, found: str, allowed: str = "") -> DataError:
        """Make an error that names a member's line, counted from 1."""
        where = f"{self.option}: {self.shown(member)}, line {line:,}"
        return DataError(what, where=where, found=found[:300], allowed=allowed, fix=f"get it again from {self.page}")

    def _listed(self) -> dict[str, Callable[[], IO[bytes]]]:
        path = self.path
        if not path.exists():
            near = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
            raise DataError(
                f"{self.title} is not there",
                where=f"{self.option}: {path}",
                found=f"in {path.parent}: {listing(near)}" if path.parent.is_dir() else f"no folder {path.parent}",
                fix=f"get it from {self.page} and give its folder or archive",
            )
        if path.is_dir():
            files = sorted(entry for pattern in ("*", "*/*") for entry in path.glob(pattern) if entry.is_file())
            members = {str(file.relative_to(path)): _opener(file) for file in files}
            for file in files:
                if file.suffix.lower() == ".zip" and zipfile.is_zipfile(file):
                    members |= {
                        f"{file.relative_to(path)}/{name}": opener for name, opener in _zip_members(file).items()
                    }
            return members
        try:
            if zipfile.is_zipfile(path):
                return _zip_members(path)
            if path.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
                with tarfile.open(path) as archive:
                    return {member.name: _tar_opener(path, member) for member in archive if member.isfile()}
        except _DAMAGE as error:
            raise self._damaged("", error) from error
        if path.suffix.lower() == ".zip":
            raise self._damaged("", zipfile.BadZipFile("it has no table of contents, which stands at its end"))
        return {path.name: _opener(path)}

    def _matches(self, name: str, within: str) -> list[str]:
        names = {name.lower(), f"{name.lower()}.gz"}
        return [
            member
            for member in self.members
            if (parts := member.lower().split("/"))[-1] in names and within in "/".join(parts[:-1])
        ]

    def _damaged(self, member: str, error: Exception) -> DataError:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        where = f"{self.option}: {self.shown(member)}"
        if isinstance(error, UnicodeDecodeError) or "utf8" in message.lower():
            try:
                with self.stream(member) as stream:
                    collections.deque(faults.text_lines(stream), 0)
            except Fault as fault:
                allowed = f"{fault.allowed}, as its owner publishes it"
                return self.error(fault.what, member, fault.line, fault.found, allowed)
        if isinstance(error, pa.ArrowException):
            return DataError(
                "a row cannot be read", where=where, found=message, fix=f"get the file again from {self.page}"
            )
        return DataError(
            "the file is cut short or damaged",
            where=where,
            found=f"{message}{self._how_far(member) if member else ''}",
            fix=f"get it again from {self.page}",
        )

    def _how_far(self, member: str) -> str:
        try:
            with self.stream(member) as stream:
                return faults.how_far(stream, _DAMAGE)
        except _DAMAGE:
            return ""


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _zip_members(path: Path) -> dict[str, Callable[[], IO[bytes]]]:
    def opener(name: str) -> Callable[[], IO[bytes]]:
        return lambda: zipfile.ZipFile(path).open(name)

    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    return {name: opener(name) for name in names if not name.startswith("__MACOSX/")}


def _tar_opener(path: Path, member: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        stream = tarfile.open(path).extractfile(member)  # noqa: SIM115
        assert stream is not None  # only files are listed
        return stream

    return opened
