"""The YAML file of settings that FiT's weights are released with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from causalfusion.errors import UserError


def settings_beside(path: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], list[str]]:
    """(the arguments of the network in a YAML file beside a checkpoint, {} without one; notes on files of
    models of other sizes, which are not used). Of several, the one of the checkpoint's name counts. Raises
    UserError where it is not clear which is the checkpoint's."""
    found, notes, sizes = dict[Path, dict[str, Any]](), list[str](), _sizes(state)
    for file in (*sorted(path.parent.glob("*.yaml")), *sorted(path.parent.glob("*.yml"))):
        arguments = _read(file)
        if all(arguments.get(name, size) == size for name, size in sizes.items()):
            found |= {file: arguments} if arguments else {}
        else:
            notes.append(f"the settings in {file.name} are of a model of another size, and not used")
    chosen = [file for file in found if file.stem == path.stem] or list(found)
    if any(found[file] != found[chosen[0]] for file in chosen):
        raise UserError(
            f"{path.parent} holds settings that differ, {', '.join(file.name for file in chosen)}; name "
            f"those of {path.name} {path.stem}.yaml"
        )
    return (found[chosen[0]] if chosen else {}), notes


def _sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Width and depth of a network, by the names of their settings, as far as its weights tell them."""
    sizes = {"depth": len({m[1] for name in state if (m := re.match(r"blocks\.(\d+)\.", name))})}
    if "x_embedder.proj.weight" in state:
        sizes["hidden_size"] = len(state["x_embedder.proj.weight"])
    return sizes


def _read(file: Path) -> dict[str, Any]:
    """The arguments of the network in a YAML file; {} for some other file."""
    import yaml

    try:
        return _network_arguments(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}


def _network_arguments(values: Any) -> dict[str, Any]:
    """`params` of the `network_config`, wherever it stands."""
    if not isinstance(values, dict):
        return {}
    network = values.get("network_config")
    if isinstance(network, dict) and isinstance(network.get("params"), dict):
        return network["params"]
    return next((found for inside in values.values() if (found := _network_arguments(inside))), {})
