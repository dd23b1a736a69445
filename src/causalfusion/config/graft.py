"""The settings of a run that begins with a language model."""

from __future__ import annotations

from dataclasses import replace

from causalfusion.config.language import NUM_MARKERS
from causalfusion.config.model import ModelConfig
from causalfusion.config.serialize import flat, to_dict
from causalfusion.config.settings import RunConfig
from causalfusion.errors import UserError

_OF_TEXT = (
    "hidden_size", "depth", "num_heads", "num_kv_heads", "head_size", "mlp", "mlp_ratio", "mlp_hidden",
    "norm", "out_norm", "qk_norm", "language",
)  # fmt: skip
"""Settings of a model that follow from the language model."""
_BIASES_OF_TEXT = ("qkv", "attention", "mlp")


def grafted(config: RunConfig, language: ModelConfig) -> RunConfig:
    """The settings of a run that begins with this model. Of a language model, also of one that already draws,
    those of the text are its own; raises UserError where the run says otherwise. Others leave them all."""
    model = config.model
    if not language.speaks:
        return config
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
    text = config.text if config.text.tokenizer else replace(config.text, tokenizer="init")
    return replace(config, model=result, text=text)
