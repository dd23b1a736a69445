"""A pipeline's way from and to disk and the hub: its model folder, with a page about it, and adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self, get_args

import torch

from causalfusion.config import SampleConfig
from causalfusion.config.options import QuantizeChoice
from causalfusion.diffusion.process import make_process
from causalfusion.errors import UserError, check
from causalfusion.files import write_whole
from causalfusion.generate.token_pipeline import TokenPipeline
from causalfusion.model.quantized import quantize_weights
from causalfusion.saved.adapted import Weighted, adapted, read_weighted, told_of
from causalfusion.saved.folder import (
    WeightsName,
    load_model,
    load_spec,
    load_tokenizer,
    open_model_codec,
    read_latest,
    replace_model,
)
from causalfusion.saved.hub import fetch_model, hub_name, parse_hub_name
from causalfusion.saved.hub_adapter import fetch_adapter
from causalfusion.saved.hub_upload import upload_model
from causalfusion.saved.model_card import CardFacts, model_card
from causalfusion.saved.sampling import read_sampling
from causalfusion.weight_files import fingerprint_of


@dataclass(frozen=True)
class PublishedPipeline(TokenPipeline):
    """`huggingface_hub.ModelHubMixin` has these names; it is no base of this class, as that would import the
    hub's client, half a second, into every command that draws an image."""

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        weights: WeightsName = "ema",
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype = torch.float32,
        autoencoder: str = "",
        adapters: Mapping[str | Path, float] | None = None,
        quantize: QuantizeChoice = "none",
    ) -> Self:
        """From a model folder, a training run (its last checkpoint), the name of a packaged model, or a name
        on the hub; `autoencoder`: its place, if neither in the folder nor where it was in training;
        `adapters`: adapters of this model, folders or names on the hub, each with its weight, as
        {"models/heart": 0.7, "user/star": 1.0}; `quantize`: as in docs/export.md:

        pipeline = Pipeline.load("shapes")
        pipeline.to_pil(pipeline.generate(prompts=["a small red circle"]))[0].save("circle.png")
        """

        given = read_weighted(adapters or {})
        return cls._opened(Path(folder), given, weights, device, autocast_dtype, autoencoder, quantize)

    @classmethod
    def _opened(
        cls,
        folder: Path,
        given: Weighted,
        weights: WeightsName,
        device: torch.device | str,
        autocast_dtype: torch.dtype,
        autoencoder: str,
        quantize: QuantizeChoice,
    ) -> Self:
        """`load` with adapters that are read."""
        choices = get_args(QuantizeChoice)
        check(quantize in choices, "quantize", quantize, f"one of {', '.join(choices)}")

        def read(place: Path) -> Self:
            model, spec = load_model(place, weights, device)
            codec = open_model_codec(place, spec, autoencoder).to(device)
            tokenizer, sampling = load_tokenizer(place, spec), read_sampling(place)
            process = make_process(spec.diffusion)
            plain = cls(model, codec, spec, process, autocast_dtype, tokenizer, sampling)
            pipeline = plain._with(given)
            if quantize == "int8":
                quantize_weights(pipeline.model)
            return replace(pipeline, quantize=quantize)

        return read_latest(folder, read)[0]

    def with_adapters(self, adapters: Mapping[str | Path, float]) -> Self:
        """This pipeline with further adapters of its model, as for `load`; itself it stays as it is:

        hearts = pipeline.with_adapters({"user/heart": 0.7})

        Raises UserError."""
        if self.quantize != "none":
            raise UserError(
                f"the pipeline's weights are {self.quantize}, to which no adapter is added; give the "
                "adapters where it is loaded"
            )
        return self._with(read_weighted(adapters))

    def _with(self, given: Weighted) -> Self:
        if not given:
            return self
        fingerprint = self.fingerprint or fingerprint_of(self.model.state_dict())
        model, spec, tokenizer = adapted(self.model, self.spec, self.tokenizer, given, fingerprint)
        told = (*self.adapters, *told_of(given))
        return replace(
            self, model=model, spec=spec, tokenizer=tokenizer, adapters=told, fingerprint=fingerprint
        )

    @classmethod
    def from_pretrained(
        cls,
        model: Path | str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | str | None = None,
        local_files_only: bool = False,
        weights: WeightsName = "ema",
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype = torch.float32,
        autoencoder: str = "",
        adapters: Mapping[str | Path, float] | None = None,
        quantize: QuantizeChoice = "none",
    ) -> Self:
        """As `load`; names on the hub (user/model), those of adapters too, with the hub's own options:

        pipeline = Pipeline.from_pretrained("user/model", revision="v1.0")

        Raises UserError where the hub does not give it.
        """
        name = None if Path(model).exists() else parse_hub_name(str(model), revision)
        if name is not None:
            model = fetch_model(name, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        fetch = partial(fetch_adapter, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        given = read_weighted(adapters or {}, fetch)
        return cls._opened(Path(model), given, weights, device, autocast_dtype, autoencoder, quantize)

    def save_pretrained(
        self, folder: Path | str, *, license: str = "", sampling: SampleConfig | None = None, name: str = ""
    ) -> Path:
        """Write a self-contained model folder, in float32, with its autoencoder, recommended `sampling` (by
        default the model's own), and a page (README.md) for users who load it by `name`. Replaces a model
        there. Raises UserError."""
        if self.quantize != "none":
            raise UserError(
                f"the pipeline's weights are {self.quantize}, which a model folder does not hold; load it "
                "without quantize, and quantize where it is used"
            )
        folder = Path(folder)
        weights = self.model.state_dict()
        replace_model(
            folder, self.spec, weights, tokenizer=self.tokenizer, autoencoder=self.codec.autoencoder,
            sampling=sampling or self.sampling,
        )  # fmt: skip
        facts = CardFacts(parameters=sum(value.numel() for value in weights.values()), license=license)
        write_whole(folder / "README.md", model_card(name or folder.name, load_spec(folder), facts))
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        license: str = "",
        sampling: SampleConfig | None = None,
        token: str | bool | None = None,
        commit_message: str = "",
    ) -> str:
        """Upload the model to `repo_id`, user/model or user/model@branch; the address of its page.

        `causalfusion publish` also tells what is known of the run: figures, settings, data, pictures. Raises
        UserError where the hub refuses it.
        """
        name = hub_name(repo_id)
        with tempfile.TemporaryDirectory(prefix="causalfusion-") as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, license=license, sampling=sampling, name=repo_id)
            return upload_model(folder, name, private=private, token=token, message=commit_message)
