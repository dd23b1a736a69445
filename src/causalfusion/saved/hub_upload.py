"""Folders uploaded to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from causalfusion.errors import UserError
from causalfusion.saved.adapter_files import WEIGHTS_FILE
from causalfusion.saved.hub import FETCHED, PICKLED, HubName, refusal
from causalfusion.saved.hub_adapter import FILES

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_BESIDE = ("figures/*", "pictures/*", "training.toml")
"""Further files that a model or an adapter is published with: for its page, not for its use."""


def upload_model(
    folder: Path, name: HubName, *, private: bool = False, token: str | bool | None = None, message: str = ""
) -> str:
    """Upload a folder to a repository of the hub, which is created if it is not there; the address of the
    model's page. Files of an earlier model that the folder lacks are removed. Raises UserError, also for a
    repository that holds an adapter, whose page the model's would replace."""
    return _upload(
        folder, name, FETCHED, WEIGHTS_FILE, "an adapter", message or "Model by causalfusion",
        private=private,
        token=token,
    )  # fmt: skip


def upload_adapter(folder: Path, name: HubName, *, private: bool = False) -> str:
    """The same of an adapter, which no repository of a model takes."""
    return _upload(
        folder, name, FILES, "model.safetensors", "a model", "Adapter by causalfusion", private=private,
        token=None,
    )  # fmt: skip


def _upload(
    folder: Path,
    name: HubName,
    files: Sequence[str],
    spared: str,
    what: str,
    message: str,
    *,
    private: bool,
    token: str | bool | None,
) -> str:
    """Upload a folder in place of files of these patterns, and of those beside them; a repository with the
    file `spared` holds `what`, and is refused."""
    from huggingface_hub import HfApi

    require_publishable(folder.rglob("*"))
    hub = HfApi(token=token)
    try:
        hub.create_repo(name.repository, private=private or None, exist_ok=True)
        if private and not hub.model_info(name.repository).private:
            raise UserError(f"{name.repository} exists and is public; leave --private out, or give another")
        if name.revision:
            hub.create_branch(name.repository, branch=name.revision, exist_ok=True)
        if _holds(hub, name, spared):
            raise UserError(f"{name} holds {what}, whose page would be replaced; give another repository")
        hub.upload_folder(
            repo_id=name.repository,
            folder_path=folder,
            revision=name.revision,
            commit_message=message,
            delete_patterns=[*files, *_BESIDE],
        )
    except UserError:
        raise
    except Exception as error:  # the hub's own errors, those of the network, and of the disk
        raise UserError(refusal(name, error, writing=True)) from None
    return f"{hub.endpoint}/{name.repository}" + (f"/tree/{name.revision}" if name.revision else "")


def _holds(hub: HfApi, name: HubName, file: str) -> bool:
    siblings = hub.model_info(name.repository, revision=name.revision).siblings
    return any(one.rfilename == file for one in siblings or [])


def require_publishable(files: Iterable[Path]) -> None:
    """Raises UserError if one of the files is pickled."""
    for file in files:
        if file.suffix in PICKLED:
            raise UserError(f"{file} is a pickle, which is not published; expected safetensors")
