"""Vision models of Hugging Face `transformers`: opened whole, with their image processors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL, getLogger
from typing import Any

from safetensors import SafetensorError
from torch import nn

from causalfusion.errors import UserError


def load_vision_model(model: str) -> tuple[nn.Module, Any]:
    """A vision model, by id or folder, and its image processor. Raises UserError if it cannot be opened or
    lacks weights."""
    loaded, _, processor = load_whole(import_transformers(), model)
    return loaded, processor


def load_whole(transformers: Any, model: str) -> tuple[nn.Module, set[str], Any]:
    """As `_load`; a checkpoint may lack the weights of a pooling layer alone."""
    with _quiet(transformers):
        found = _load(transformers, model)
    _check_missing(model, found[1])
    return found


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError(
            "features transformers:... need the package transformers; pip install 'causalfusion[eval]'"
        ) from None
    return transformers


def _load(transformers: Any, model: str) -> tuple[nn.Module, set[str], Any]:
    """The model, the names of weights that its checkpoint lacks, and its image processor."""
    try:
        config = transformers.AutoConfig.from_pretrained(model)
        architectures = config.architectures or []
        is_classifier = any(name.endswith("ForImageClassification") for name in architectures)
        kind = transformers.AutoModelForImageClassification if is_classifier else transformers.AutoModel
        loaded, info = kind.from_pretrained(model, config=config, output_loading_info=True)
        processor = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(
            f"features transformers:{model} cannot be opened ({one_line(error)}); expected the id of a "
            "vision model in the cache or on a hub within reach, or a folder of one with its image processor"
        ) from None
    return loaded, set(info["missing_keys"]), processor


def _check_missing(model: str, missing: set[str]) -> None:
    """Raises UserError for a checkpoint that lacks weights, which would be random. Only a pooling layer may
    be missing: it is then not used."""
    needed = sorted(key for key in missing if "pooler" not in key)
    if needed:
        more = f" and {len(needed) - 1} more" if len(needed) > 1 else ""
        raise UserError(
            f"features transformers:{model}: the checkpoint lacks weight {needed[0]}{more}, which would be "
            "random; expected a whole model"
        )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silences progress bars and warnings of unused heads in a checkpoint or of an unreachable hub."""
    logging = transformers.utils.logging
    hub = getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(CRITICAL)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def one_line(error: Exception) -> str:
    """Message of an error, as one line of at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
