"""Model folders on the Hugging Face hub, fetched into its cache, and the rules for all that is fetched.

Only files of the names in FETCHED are ever fetched of a model: weights as safetensors, settings as JSON and
TOML, texts. Nothing of a repository is executed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from causalfusion.config.serialize import read_json
from causalfusion.errors import UserError, brief
from causalfusion.machine.progress import tell
from causalfusion.saved.earlier_formats import is_ours

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FETCHED = (
    "config.json",
    "model.safetensors",
    "sample.toml",
    "classifier.safetensors",
    "tokenizer.json",
    "language/*.json",
    "language/*.jinja",
    "autoencoder/*.json",
    "autoencoder/*.safetensors",
    "README.md",
)
"""Patterns of a model folder's files. `.jinja` is a chat template, which is rendered in a sandbox."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\S+))?")
_FOLDERS = ("runs", "models")
"""Names under which our own commands put models: no user of the hub is meant by them."""
_FORM = "expected user/model or user/model@revision"


@dataclass(frozen=True)
class HubName:
    """A repository on the hub, and a branch, tag or commit of it."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def parse_hub_name(text: str, revision: str | None = None) -> HubName | None:
    """The repository that a text names, user/model or user/model@revision; None if it has another form.
    Raises UserError for two revisions."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    if match["revision"] and revision:
        raise UserError(f"{text} and the revision {revision} are two revisions; expected one of them")
    return HubName(match["repository"], match["revision"] or revision)


def model_of_hub(path: Path) -> Path | None:
    """The folder of the model of the hub that a path's text names; None for a path of another form, and for
    one into a folder that exists: what is here takes precedence, and a mistyped path asks no hub. Raises
    UserError if the hub does not give it."""
    name = name_of_path(path)
    return None if name is None else fetched_once(name)


def name_of_path(path: Path) -> HubName | None:
    """The repository of the hub that a path's text names, by the rules of `model_of_hub`; None for others."""
    first = Path(*path.parts[:1])
    local = path.exists() or first.is_dir() or str(first) in _FOLDERS
    return None if local else parse_hub_name(str(path))


@lru_cache(maxsize=16)
def fetched_once(name: HubName) -> Path:
    """As `fetch_model`; within a process, always the same folder: a model's settings and its weights, which a
    command reads one after the other, are of one version."""
    return fetch_model(name)


def fetch_model(
    name: HubName,
    *,
    token: str | bool | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a model of the hub in the hub's cache, downloaded where it is not there yet.

    The address, cache, offline mode and token are those of the hub's usual variables (HF_ENDPOINT, HF_HOME,
    HF_HUB_OFFLINE, HF_TOKEN). Without a network, the version in the cache is taken. Raises UserError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub = HfApi(token=token)
    files = None if local_files_only else listing(hub, name)
    if files is not None:
        _require_model(name, files)
    try:
        config = hub.hf_hub_download(
            name.repository,
            "config.json",
            revision=name.revision,
            cache_dir=cache_dir,
            local_files_only=files is None,
        )
        _require_ours(Path(config), name)
        # All that is there, as a download that was broken off may have left some of it in the cache.
        needed = [file for file in files or () if any(fnmatch(file, own) for own in FETCHED)]
        return snapshot(hub, name, Path(config).parent, cache_dir, FETCHED, needed, local=files is None)
    except UserError:
        raise
    except LocalEntryNotFoundError:
        raise UserError(not_here(name, offline=local_files_only)) from None
    except Exception as error:  # the hub's own errors, those of the network, and of the disk
        raise UserError(refusal(name, error)) from None


def listing(hub: HfApi, name: HubName, what: str = "a model") -> list[str] | None:
    """The files of a repository that is to hold `what`; None where the hub cannot be reached, which one
    request finds out: a download would try again for half a minute. Raises UserError for what the hub
    refuses."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        siblings = hub.model_info(name.repository, revision=name.revision, timeout=20).siblings
    except (HfHubHTTPError, HFValidationError) as error:
        if _status(error) >= 500:
            return None
        raise UserError(refusal(name, error, what)) from None
    except Exception:  # offline, or one of the many errors of networks
        return None
    return [file.rfilename for file in siblings or []]


def _status(error: Exception) -> int:
    """The HTTP status of the hub's answer; 0 where there is none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def snapshot(
    hub: HfApi,
    name: HubName,
    commit: Path,
    cache_dir: Path | str | None,
    patterns: Sequence[str],
    needed: Sequence[str],
    *,
    local: bool,
) -> Path:
    """The folder of a commit with all files of these patterns; quiet where those that are `needed` are in the
    cache already."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*, local: bool) -> Path:
        folder = hub.snapshot_download(
            name.repository,
            revision=commit.name,
            cache_dir=cache_dir,
            allow_patterns=list(patterns),
            local_files_only=local,
        )
        return Path(folder)

    try:
        found = download(local=True)
        if local or all((found / file).is_file() for file in needed):
            return found
    except LocalEntryNotFoundError:
        if local:
            raise
    tell(f"fetching {name} from the hub", stream=sys.stderr)
    return download(local=False)


def _require_ours(config: Path, name: HubName) -> None:
    """Raises UserError unless a config.json is that of a model of ours; its weights are fetched only then."""
    if not is_ours(read_json(config, "model")):
        raise UserError(
            f"{name} on the hub holds no model of causalfusion (its config.json is another library's); "
            "language models and other systems' weights are read by causalfusion convert"
        )


def _require_model(name: HubName, files: list[str]) -> None:
    """Raises UserError for a repository without the files of a model."""
    missing = [file for file in ("config.json", "model.safetensors") if file not in files]
    pickled = [file for file in files if file.endswith(PICKLED)]
    if missing and pickled and not any(file.endswith(".safetensors") for file in files):
        raise UserError(
            f"{name} on the hub has only pickled weights ({pickled[0]}), which can hold code and are not "
            "fetched; expected model.safetensors: ask its author for that, or convert a copy that you trust "
            "(causalfusion convert)"
        )
    if missing:
        raise UserError(
            f"{name} on the hub holds no model: no {missing[0]} there; expected a folder that causalfusion "
            "publish made"
        )


def not_here(name: HubName, *, offline: bool) -> str:
    """The message where the hub was not asked, or did not answer, and the cache has no such thing."""
    from huggingface_hub import constants

    why = f"the hub, {constants.ENDPOINT}, cannot be reached"
    if offline or constants.is_offline_mode():
        why = "the offline mode is on (HF_HUB_OFFLINE, or local_files_only)"
    return (
        f"{name} is no path here, not in the hub's cache, and {why}; give a folder's path, or fetch it once "
        "with a network"
    )


def refusal(name: HubName, error: Exception, what: str = "a model", *, writing: bool = False) -> str:
    """The message for an error of the hub, of a repository that is to hold `what`: what is wrong, and what to
    do."""
    from huggingface_hub import constants, errors

    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms on its page, and give a token that may read it (HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name.repository} on the hub has no revision {name.revision or 'main'}; see its page"
    if status == 401 and "credentials" in str(error).lower():
        return "the hub does not know this token; give a valid one as HF_TOKEN, or run hf auth login"
    if status == 401 and writing:
        return f"writing to {name} needs a token with write access; give it as HF_TOKEN, or run hf auth login"
    if status == 403 and writing:
        return f"this token may not write to {name}; give one with write access to it as HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name.repository} is neither a path here nor {what} on the hub that this token may read; "
            "check the name; a private one needs HF_TOKEN"
        )
    if isinstance(error, errors.HFValidationError):
        return f"{name} is not the name of a repository; {_FORM}"
    if not status and type(error).__module__.startswith("httpx"):
        return f"the hub, {constants.ENDPOINT}, cannot be reached ({_told(error)}); check the network"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the offline mode is on (HF_HUB_OFFLINE); publishing needs the network"
    return f"the hub does not do this for {name} ({_told(error)})"


def _told(error: Exception) -> str:
    """What the hub's server says, or else the error, in a line."""
    return brief(getattr(error, "server_message", None) or error)


def hub_name(text: str) -> HubName:
    """The repository of a text. Raises UserError for one of another form."""
    name = parse_hub_name(text)
    if name is None:
        raise UserError(f"{text!r} is not the name of a repository; {_FORM}")
    return name
