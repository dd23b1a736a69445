"""A pipeline's way to disk and to the hub: its model folder, with a page about it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from causalfusion.config import SampleConfig
from causalfusion.files import write_whole
from causalfusion.generate.token_pipeline import TokenPipeline
from causalfusion.saved.folder import load_spec, replace_model
from causalfusion.saved.hub import hub_name, upload_model
from causalfusion.saved.model_card import CardFacts, model_card


@dataclass(frozen=True)
class PublishedPipeline(TokenPipeline):
    """`huggingface_hub.ModelHubMixin` has these names; it is no base of this class, as that would import the
    hub's client, half a second, into every command that draws an image."""

    def save_pretrained(
        self, folder: Path | str, *, license: str = "", sampling: SampleConfig | None = None, name: str = ""
    ) -> Path:
        """Write a self-contained model folder, in float32, with its autoencoder, recommended `sampling`, and
        a page (README.md) for users who load it by `name`. Replaces a model there. Raises UserError."""
        folder = Path(folder)
        weights = self.model.state_dict()
        replace_model(
            folder, self.spec, weights, tokenizer=self.tokenizer, autoencoder=self.codec.autoencoder,
            sampling=sampling,
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
