"""Images for a language model: its choices and its weights in a model that also draws.

Shape letters: V rows of the text's embedding, D width.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from causalfusion.config import NUM_MARKERS, ModelConfig, RunConfig
from causalfusion.config.serialize import flat, to_dict
from causalfusion.errors import UserError
from causalfusion.model.transformer import Transformer
from causalfusion.rng import derive_generator
from causalfusion.train.fine_tuning import is_of_text

_OF_TEXT = (
    "hidden_size", "depth", "num_heads", "num_kv_heads", "head_size", "mlp", "mlp_ratio", "mlp_hidden",
    "norm", "out_norm", "qk_norm", "language",
)  # fmt: skip
"""Settings of a model that follow from the language model."""
_BIASES_OF_TEXT = ("qkv", "attention", "mlp")


def grafted(config: RunConfig, language: ModelConfig) -> RunConfig:
    """The settings of a run that begins with a language model, or with one that already draws: those of the
    text are its own. Raises UserError where the run says otherwise."""
    model = config.model
    ours = {name: getattr(language, name) for name in _OF_TEXT}
    if language.text_only:
        ours["language"] = replace(language.language, markers="own", longest=language.max_text_tokens)
    ours["bias"] = replace(model.bias, **{name: getattr(language.bias, name) for name in _BIASES_OF_TEXT})
    ours["vocab_size"] = language.vocab_size + (NUM_MARKERS if language.text_only else 0)
    result = replace(model, **ours)
    given, default, theirs = (flat(to_dict(each)) for each in (model, ModelConfig(), result))
    for name, value in given.items():
        if value not in (default[name], theirs[name]):
            raise UserError(
                f"model.{name} is {value}, the language model has {theirs[name]}; leave it out, as texts go "
                "through the language model's own blocks"
            )
    longest = result.language.longest
    if result.language.positions == "learned" and model.max_text_tokens > longest:
        raise UserError(
            f"model.max_text_tokens is {model.max_text_tokens}; the language model has room for {longest}: "
            "give at most that"
        )
    text = config.text if config.text.tokenizer else replace(config.text, tokenizer=config.train.init)
    return replace(config, model=result, text=text)


def for_drawing(weights: dict[str, Tensor], config: RunConfig) -> dict[str, Tensor]:
    """The weights of a language model for one that also draws: markers begin as the average of all tokens,
    told apart by a little noise; weights of image tokens begin as those of the text, where they are alike."""
    model, found = config.model, dict(weights)
    for table, markers in (("text_embedding", "marker_embedding"), ("text_out", "marker_out")):
        rows = weights.get(f"{table}.weight")
        if rows is not None:
            mean, std = rows.mean(0), float(rows.std())
            noise = mean.new_empty(NUM_MARKERS, len(mean))
            noise.normal_(std=std / 4, generator=derive_generator(config.train.seed, "markers", 0))
            found[f"{markers}.weight"] = mean + noise
    alike = (model.image_size, model.image_mlp_size) == (model.hidden_size, model.mlp_size)
    if model.own_image_weights and alike:
        for name, value in weights.items():
            parts = name.split(".")
            if parts[0] == "blocks":
                found[".".join([*parts[:2], "image", *parts[2:]])] = value
            elif parts[0] == "norm_out":
                found[f"image_{name}"] = value
    return found


def fresh_of(model: Transformer) -> frozenset[str]:
    """Weights that a language model does not have, and that begin at random where nothing else is said."""
    return frozenset(name for name in model.state_dict() if not is_of_text(name))
