"""Model and tokenizer in the forms that a pipeline of diffusers saves and loads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from causalfusion.codec.tokenizer import FILE_NAME, LANGUAGE_FOLDER, Tokenizer, check_fits
from causalfusion.config import SampleConfig
from causalfusion.config.serialize import from_dict, to_dict
from causalfusion.errors import UserError
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import FORMAT, ModelSpec, parse_spec


class CausalFusionModel(ModelMixin, ConfigMixin):
    """The transformer, with the settings of the model and its recommended sampling as its configuration."""

    @register_to_config
    def __init__(self, spec: dict[str, Any], sampling: dict[str, Any] | None = None) -> None:
        """`spec`: the content of a model's config.json; `sampling`: settings of generation that are not the
        defaults, None: the model recommends none. Raises UserError."""
        super().__init__()
        self.spec = parse_spec(dict(spec), "the pipeline's transformer/config.json")[0]
        self.sampling = None if sampling is None else from_dict(SampleConfig, dict(sampling), "sampling.")
        self.model = Transformer(self.spec.model)

    @classmethod
    def of(cls, model: Transformer, spec: ModelSpec, sampling: SampleConfig | None = None) -> Self:
        """A model that is loaded already; its weights are shared."""
        plain = to_dict(SampleConfig())
        given = None if sampling is None else to_dict(sampling)
        changed = None if given is None else {n: v for n, v in given.items() if v != plain[n]}
        wrapped = cls(spec={"format": FORMAT, **to_dict(spec)}, sampling=changed)
        wrapped.model = model
        return wrapped.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any) -> Self:
        # Positions are computed where the model is made, and would be missing on a model without memory.
        kwargs |= {"low_cpu_mem_usage": False}
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        loaded.requires_grad_(False)
        return loaded


class TextTokenizer(SchedulerMixin):
    """A tokenizer's files. Diffusers loads components of a few kinds alone: of those, a scheduler is the one
    that has no weights, and does not need transformers."""

    def __init__(self, json: str, language_files: Mapping[str, bytes] | None = None) -> None:
        self.json, self.language_files = json, dict(language_files or {})

    @classmethod
    def of(cls, tokenizer: Tokenizer | None) -> Self | None:
        return None if tokenizer is None else cls(tokenizer.to_json(), tokenizer.language_files)

    def opened(self, spec: ModelSpec) -> Tokenizer:
        """The tokenizer of a model with these settings. Raises UserError unless it is that of training."""
        vocabulary = spec.model.text_vocab_size if spec.model.language.markers == "own" else 0
        try:
            tokenizer = Tokenizer(self.json, vocabulary, self.language_files)
        except ValueError as error:
            raise UserError(f"the pipeline's {FILE_NAME} cannot be read ({error}); copy it again") from None
        check_fits(tokenizer, spec.model.vocab_size, "the pipeline")
        if tokenizer.fingerprint != spec.tokenizer_fingerprint:
            raise UserError(f"the pipeline's {FILE_NAME} is not that of the model's training; put it back")
        return tokenizer

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write tokenizer.json, and a language model's further files. (`push_to_hub`: the pipeline's.)"""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE_NAME).write_text(self.json, encoding="utf-8")
        for name, content in self.language_files.items():
            (folder / LANGUAGE_FOLDER).mkdir(exist_ok=True)
            (folder / LANGUAGE_FOLDER / name).write_bytes(content)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Self:
        folder = Path(pretrained_model_name_or_path or ".") / (subfolder or "")
        file, beside = folder / FILE_NAME, folder / LANGUAGE_FOLDER
        if not file.is_file():
            raise UserError(f"{folder} has no {FILE_NAME}; expected a folder that save_pretrained wrote")
        files = {path.name: path.read_bytes() for path in sorted(beside.iterdir())} if beside.is_dir() else {}
        return cls(file.read_text(encoding="utf-8"), files)
