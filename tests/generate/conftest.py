"""Small random models that the tests of generation share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from causalfusion.codec.tokenizer import Tokenizer, train_tokenizer
from causalfusion.config import CodecConfig, DiffusionConfig, ModelConfig
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, replace_model

CAPTIONS = ["a small red circle", "a large blue star", "a small blue square above a red star"]
TEXT = 40


def make_model(folder: Path, tokenizer: Tokenizer | None, *, classes: int, class_tokens: int) -> Path:
    """A model of 8x8 images in four tokens, with random weights."""
    codec = CodecConfig(
        patch_size=4, image_height=8, image_width=8, image_channels=3, latent_channels=3, downsample=1
    )
    config = ModelConfig(
        hidden_size=32, depth=2, num_heads=2, num_class_tokens=class_tokens, num_classes=classes,
        token_dim=48, grid_height=2, grid_width=2, max_text_tokens=TEXT, max_images=2,
        vocab_size=tokenizer.vocab_size if tokenizer else 0,
    )  # fmt: skip
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.35, generator=generator)
    torch.nn.init.normal_(model.image_out.weight, std=0.2, generator=generator)  # few pixels are clamped
    names = ["cat", "dog", "owl"][:classes]
    diffusion = DiffusionConfig(prediction_type="sample")
    spec = ModelSpec(model=config, codec=codec, diffusion=diffusion, class_names=names)
    replace_model(folder, spec, model.state_dict(), tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """A model with text; one with classes, too; and one with classes alone."""
    root, tokenizer = tmp_path_factory.mktemp("models"), train_tokenizer(CAPTIONS * 2, 300)
    return {
        "text": make_model(root / "text", tokenizer, classes=3, class_tokens=0),
        "both": make_model(root / "both", tokenizer, classes=3, class_tokens=2),
        "classes": make_model(root / "classes", None, classes=3, class_tokens=2),
    }
