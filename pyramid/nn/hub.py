"""Model folders to and from the Hugging Face hub: weights, config and card, nothing else, and nothing of it is run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from pyramid import files
from pyramid.errors import DataError
from pyramid.nn.checkpoint import CONFIG_FILE, WEIGHTS_FILE

__all__ = ["CARD_FILE", "local_folder", "push_folder"]

CARD_FILE = "README.md"
_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def local_folder(name: str, revision: str | None = None) -> str:
    """Returns a model folder: ``name`` itself, or a copy of the hub's model of that id.

    Args:
        name: folder or id (``owner/name``); a folder of that name wins, and what cannot be an id is never asked for.
        revision: branch, tag or commit of the hub.

    Raises:
        DataError: there is no such folder, and the hub gives no such model.
    """
    if files.exists(name) or not _REPO_ID.fullmatch(name):
        return name
    from huggingface_hub import snapshot_download

    try:
        return os.fspath(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())[:300]
        raise DataError(f"there is no folder '{name}', and the hub gives no model of that id: {problem}") from error


def push_folder(save: Callable[[str], object], repo_id: str, *, private: bool, token: str | None, message: str) -> str:
    """Uploads what ``save`` writes to a folder in one commit; returns the commit's address.

    Args:
        save: writes the model folder.
        repo_id: ``owner/name``; made if missing.
        private: whether a repository that is made now is private.
        token: access token; None takes the one that ``hf auth login`` stored.
        message: of the commit.
    """
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message))
