"""Features as `transformers` has those of vision models: a configuration, a model and an image processor,
which its Auto classes know once this is imported.

    import causalfusion.interop.transformers
    extractor = transformers.pipeline("image-feature-extraction", model="shapes-features")

Shape letters: B images, C channels, H and W pixels, L image tokens, D width of a layer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from causalfusion.codec.autoencoder import save_autoencoder
from causalfusion.codec.tokenizer import FILE_NAME as TOKENIZER_FILE
from causalfusion.codec.tokenizer import LANGUAGE_FOLDER
from causalfusion.config.serialize import to_dict
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError, check
from causalfusion.generate.features import image_features, layer_number, share_of
from causalfusion.generate.pipeline import Pipeline
from causalfusion.generate.read import image_of
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import (
    AUTOENCODER_FOLDER,
    FORMAT,
    load_tokenizer,
    open_model_codec,
    parse_spec,
)
from causalfusion.weight_files import share_saved

try:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.feature_extraction_utils import BatchFeature
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.modeling_utils import PreTrainedModel
except ImportError:
    raise UserError(
        "features for transformers need that package, which is not installed: pip install "
        "'causalfusion[eval]' -c constraints.txt"
    ) from None


class CausalFusionConfig(PreTrainedConfig):
    """The settings of a model, and which of its features are asked for."""

    model_type = "causalfusion"

    def __init__(
        self,
        spec: dict[str, Any] | None = None,
        layer: int = -1,
        timestep: float | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        """`spec`: the content of a model's config.json; `layer`, `timestep`, `seed`: as in
        `Pipeline.features`."""
        self.spec, self.layer, self.timestep, self.seed = spec or {}, layer, timestep, seed
        self.hidden_size = (spec or {}).get("model", {}).get("hidden_size", 0)
        super().__init__(**kwargs)


class CausalFusionImageProcessor(BaseImageProcessor):
    """Pictures cropped and scaled as in training."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers' own form)

    def __init__(self, height: int = 0, width: int = 0, channels: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height, self.width, self.channels = height, width, channels

    def __call__(self, images: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.preprocess(images, return_tensors, **kwargs)

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **_: Any) -> BatchFeature:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`pixel_values` (B, C, H, W) in [-1, 1] of Pillow's pictures."""
        several = images if isinstance(images, Sequence) else [images]
        values = [image_of(one, self.height, self.width, self.channels) for one in several]
        return BatchFeature({"pixel_values": torch.stack(values)}, tensor_type=return_tensors)


class CausalFusionFeatures(PreTrainedModel):
    """What a layer makes of images: `last_hidden_state` (B, L, D) of each token in raster order, and
    `pooler_output` (B, D), their mean."""

    config_class = CausalFusionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CausalFusionConfig) -> None:
        super().__init__(config)
        self.spec = parse_spec(dict(config.spec), "config.json")[0]
        self.model = Transformer(self.spec.model)
        self.pipeline: Pipeline | None = None
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """All weights come from the file."""

    @classmethod
    def of(cls, pipeline: Pipeline, *, layer: int = -1, timestep: float | None = None, seed: int = 0) -> Self:
        """The features of a pipeline of this package; its weights are shared. Raises UserError for a layer or
        noise level that its model does not have."""
        layer_number(pipeline.model.config, layer)
        if timestep is not None:
            share_of(pipeline, timestep)
        spec = {"format": FORMAT, **to_dict(pipeline.spec)}
        made = cls(CausalFusionConfig(spec=spec, layer=layer, timestep=timestep, seed=seed))
        made.model, made.pipeline = pipeline.model, pipeline
        return made.eval()

    @classmethod
    def from_causalfusion(cls, model: Path | str, **chosen: Any) -> Self:
        """From whatever `Pipeline.load` takes; `chosen`: layer, timestep and seed. Raises UserError, for a
        layer or noise level that the model does not have, too."""
        return cls.of(Pipeline.load(model), **chosen)

    @property
    def processor(self) -> CausalFusionImageProcessor:
        """The processor of its images."""
        codec = self.spec.codec
        return CausalFusionImageProcessor(codec.image_height, codec.image_width, codec.image_channels)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """pixel_values (B, C, H, W) in [-1, 1]."""
        if self.pipeline is None:
            raise UserError("the model has no codec; load it with from_pretrained")
        if self.dtype != torch.float32:
            raise UserError(
                f"the model's weights are {self.dtype}; expected torch.float32: to compute in bfloat16, load "
                "it with dtype=torch.bfloat16, which leaves them"
            )
        pipeline = replace(self.pipeline, codec=self.pipeline.codec.to(self.device))
        config: Any = self.config
        found = image_features(
            pipeline, pixel_values.float(), [config.layer], timestep=config.timestep, seed=config.seed
        )
        (values,) = found.values()
        values = values.to(self.device)
        return BaseModelOutputWithPooling(last_hidden_state=values, pooler_output=values.mean(1))  # pyright: ignore[reportArgumentType]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write the model, its image processor and, where it has them, its tokenizer and autoencoder."""
        super().save_pretrained(save_directory, **kwargs)
        share_saved(Path(save_directory))
        self.processor.save_pretrained(save_directory)
        folder, pipeline = Path(save_directory), self.pipeline
        if pipeline is None:
            return
        if pipeline.tokenizer is not None:
            (folder / TOKENIZER_FILE).write_text(pipeline.tokenizer.to_json(), encoding="utf-8")
            for name, content in pipeline.tokenizer.language_files.items():
                (folder / LANGUAGE_FOLDER).mkdir(exist_ok=True)
                (folder / LANGUAGE_FOLDER / name).write_bytes(content)
        if pipeline.codec.autoencoder is not None:
            save_autoencoder(pipeline.codec.autoencoder, folder / AUTOENCODER_FOLDER)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """From a folder that `save_pretrained` wrote. The weights are float32; with `dtype` bfloat16 they
        compute in it. Raises UserError."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder here; download it first, and give its path")
        given = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        dtype = str(given or "auto").removeprefix("torch.")
        check(dtype in ("auto", "float32", "bfloat16"), "dtype", given, "torch.float32 or torch.bfloat16")
        loaded = super().from_pretrained(folder, *args, dtype=torch.float32, **kwargs)
        model, spec = loaded.model, loaded.spec
        if spec.model.position_embedding != "learnable":
            model.fill_positions()  # tables that no file holds
        model.requires_grad_(False)
        codec = open_model_codec(folder, spec)
        loaded.pipeline = Pipeline(
            model,
            codec,
            spec,
            make_process(spec.diffusion),
            torch.bfloat16 if dtype == "bfloat16" else torch.float32,
            tokenizer=load_tokenizer(folder, spec),
        )
        return loaded.eval()


AutoConfig.register("causalfusion", CausalFusionConfig, exist_ok=True)
AutoModel.register(CausalFusionConfig, CausalFusionFeatures, exist_ok=True)
AutoImageProcessor.register(
    CausalFusionConfig, image_processor_classes={"pil": CausalFusionImageProcessor}, exist_ok=True
)
