"""Recommenders on the Hugging Face hub: the folder of one, fetched or sent."""

from __future__ import annotations

import re
from pathlib import Path

from llmrs_lightning.errors import DataError, ModelError
from llmrs_lightning.pretrained import hub_problem

_ID = re.compile(r"[\w.-]+/[\w.-]+")


def fetched(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder called `name`, or that of the hub repository `org/name`, downloaded unless it is cached.

    Raises:
        DataError: If there is no such folder, or the hub does not give it.
    """
    folder = Path(name).expanduser()
    if folder.exists() or not _ID.fullmatch(str(name)):
        return folder
    from huggingface_hub import snapshot_download

    problem = hub_problem()
    try:
        return Path(snapshot_download(str(name), revision=revision, local_files_only=problem is not None))
    except Exception as error:  # the hub client raises errors of many packages
        raise DataError(
            f"the recommender {name} cannot be loaded",
            where=f"{name}{f', revision {revision}' if revision else ''}",
            found=f"no folder {folder.absolute()}, and {problem or _first_line(error)}",
            allowed="a folder that Recommender.save_pretrained has written, or its repository on the hub",
        ) from error


def pushed(folder: Path, repo_id: str, private: bool, revision: str | None, message: str) -> str:
    """Send an export to the hub, in one commit; return its address.

    Raises:
        ModelError: If the hub does not take it.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            delete_patterns=["encoder/*", "data/*", "metrics.json"],  # of an earlier export
        )
    except Exception as error:  # as above
        raise ModelError(
            "the hub does not take the recommender",
            where=repo_id,
            found=_first_line(error),
            allowed="org/name, with a token that may write there",
            fix="log in with `hf auth login`, or set HF_TOKEN",
        ) from error
    return str(repo)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
