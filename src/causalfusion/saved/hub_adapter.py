"""Adapters on the Hugging Face hub, fetched into its cache by the rules for models.

Of a repository, only the files in FILES are ever fetched, from its top or from its folder `adapter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from causalfusion.config.serialize import read_record
from causalfusion.errors import UserError
from causalfusion.saved.adapter_files import CONFIG_FILE, FACTS_FILE, FOLDER, WEIGHTS_FILE, AdapterFacts
from causalfusion.saved.hub import PICKLED, HubName, listing, not_here, refusal, snapshot

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FILES = (CONFIG_FILE, WEIGHTS_FILE, FACTS_FILE, "README.md")
_PLACES = ("", f"{FOLDER}/")
_WHAT = "an adapter"


@lru_cache(maxsize=64)
def adapter_fetched_once(name: HubName) -> Path:
    """As `fetch_adapter`; within a process, always the same folder."""
    return fetch_adapter(name)


def fetch_adapter(
    name: HubName,
    *,
    token: str | bool | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of an adapter of the hub in the hub's cache, downloaded where it is not there yet: all as
    `fetch_model`. Raises UserError."""
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    files = None if local_files_only else listing(hub, name, _WHAT)
    place = None if files is None else _place_of(name, files)
    try:
        if files is None or place is None:
            return _cached(hub, name, cache_dir, offline=local_files_only)
        wanted = [place + file for file in FILES if place + file in files]
        facts = place + (FACTS_FILE if place + FACTS_FILE in files else CONFIG_FILE)
        path = hub.hf_hub_download(name.repository, facts, revision=name.revision, cache_dir=cache_dir)
        if facts.endswith(FACTS_FILE):  # before its weights are fetched
            read_record(AdapterFacts, Path(path), "adapter")
        commit = Path(path).parents[len(Path(facts).parts) - 1]
        return snapshot(hub, name, commit, cache_dir, wanted, wanted, local=False) / place
    except UserError:
        raise
    except Exception as error:  # the hub's own errors, those of the network, and of the disk
        raise UserError(refusal(name, error, _WHAT)) from None


def _place_of(name: HubName, files: Sequence[str]) -> str:
    """Where in a repository with these files the adapter lies: "" or "adapter/". Raises UserError."""
    for place in _PLACES:
        if place + WEIGHTS_FILE in files:
            if place + FACTS_FILE in files or place + CONFIG_FILE in files:
                return place
            raise UserError(
                f"{name} on the hub has no {CONFIG_FILE} beside its {WEIGHTS_FILE}; it is damaged"
            )
    pickled = [file for file in files if "adapter" in file and file.endswith(PICKLED)]
    if pickled:
        raise UserError(
            f"{name} on the hub has only a pickled adapter ({pickled[0]}), which can hold code and is not "
            f"fetched; expected {WEIGHTS_FILE}: ask its author for that"
        )
    holds = "a model and no adapter (a model is given as --model)" if "model.safetensors" in files else ""
    raise UserError(
        f"{name} on the hub holds {holds or 'no adapter'}: no {WEIGHTS_FILE} there; expected a repository "
        "that causalfusion publish --adapter made, or peft"
    )


def _cached(hub: HfApi, name: HubName, cache_dir: Path | str | None, *, offline: bool) -> Path:
    """The adapter's folder in the cache, without a network. Raises UserError if it is not there."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    for place in _PLACES:
        for file in (FACTS_FILE, CONFIG_FILE):
            try:
                path = hub.hf_hub_download(
                    name.repository,
                    place + file,
                    revision=name.revision,
                    cache_dir=cache_dir,
                    local_files_only=True,
                )
            except LocalEntryNotFoundError:
                continue
            if Path(path).with_name(WEIGHTS_FILE).is_file():
                return Path(path).parent
    raise UserError(not_here(name, offline=offline))
