"""LatentLM (2412.08635): a language model over continuous tokens with a per-token head, and the DiT baseline
of the same code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from causalfusion.config import (
    BiasConfig,
    DiffusionConfig,
    HeadConfig,
    ModelConfig,
    NormConfig,
    QKNormConfig,
    RopeConfig,
    SampleConfig,
)
from causalfusion.errors import UserError
from causalfusion.interop.systems.dit import out_links, positions_link
from causalfusion.interop.systems.links import Link, blocks, rename
from causalfusion.interop.systems.released import Released, Shapes
from causalfusion.model.positions import sincos_positions

HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 12, 2048: 16}
"""Attention heads of the presets, by width."""
_SCHEDULES = ("cosine", "linear", "scaled_linear", "sigmoid", "cauchy", "laplace")
_NORM = NormConfig(kind="rms_norm", weight="none", eps=1e-6)


def read_latentlm(state: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> Released:
    """ε or v, DDPM with the cosine schedule. The settings tell the side of the latents (`input_size`, else
    16) and, as no weight does, `prediction_type` and `beta_schedule` (else epsilon and cosine)."""
    s = Shapes(state, settings, where)
    return _baseline(s) if "pos_embed" in s else _causal(s)


def _diffusion(s: Shapes) -> DiffusionConfig:
    prediction = s.settings.get("prediction_type", "epsilon")
    schedule = s.settings.get("beta_schedule", "cosine")
    for name, value, known in (
        ("prediction_type", prediction, ("epsilon", "v_prediction")),
        ("beta_schedule", schedule, _SCHEDULES),
    ):
        if value not in known:
            raise UserError(f"{s.where}: its {name} is {value!r}; expected one of {', '.join(known)}")
    return DiffusionConfig(beta_schedule=schedule, prediction_type=prediction, schedule_precision="float32")


def _shared(s: Shapes) -> dict[str, Any]:
    """Settings that both systems of this code share."""
    size = s.shape("t_embedder.mlp.2.weight", 2)[0]
    heads = s.heads("num_heads", size, HEADS)
    kv_size = (s.shape("blocks.0.attn.qkv.weight", 2)[0] - size) // 2
    bias = "x_embedder.proj.bias" in s
    return {
        "hidden_size": size,
        "depth": s.depth("blocks"),
        "num_heads": heads,
        "num_kv_heads": kv_size // (size // heads),
        "mlp": "swiglu",
        "mlp_hidden": s.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "norm": _NORM,
        "out_norm": _NORM,
        "qk_norm": QKNormConfig(kind="none"),
        "bias": BiasConfig(attention=False, mlp=False, input=bias, output=False, condition=False),
        "num_classes": s.shape("y_embedder.embedding_table.weight", 2)[0] - 1,
    }


def _causal(s: Shapes) -> Released:
    shared, grid = _shared(s), s.number("input_size", 16)
    token_dim = s.shape("final_layer.linear.weight", 2)[0]
    size, head_depth = shared["hidden_size"], s.depth("diffusion_blocks")
    model = ModelConfig(
        **shared,
        num_class_tokens=1,
        position_embedding="rope",
        rope=RopeConfig(
            base=10_000.0 * s.number("posi_scale", 1), axes="raster", pairs="interleaved", spacing="closed"
        ),
        head=HeadConfig(
            kind="per_token",
            ask="previous",
            depth=head_depth,
            norm=_NORM,
            mlp="swiglu",
            bias=False,
            mlp_hidden=s.shape("diffusion_blocks.0.mlp.fc1.weight", 2)[0],
        ),
        token_dim=token_dim,
        grid_height=grid,
        grid_width=grid,
    )
    links = [
        *_embedder("image_in", "x_embedder", size, token_dim, 1, s),
        *_embedder("head.token_in", "noisy_x_embedder", size, token_dim, 1, s),
        rename("class_embedding.table.weight", "y_embedder.embedding_table.weight"),
        rename("head.condition_in.weight", "condition_layer.linear.weight"),
        rename("head.timestep_embedding.fc1.weight", "t_embedder.mlp.0.weight"),
        rename("head.timestep_embedding.fc2.weight", "t_embedder.mlp.2.weight"),
        *blocks(model.depth, lambda _: _block(("attn.qkv", "attn.proj")), "blocks.#", "blocks.#"),
        *blocks(head_depth, lambda _: _block(("modulation",)), "head.blocks.#", "diffusion_blocks.#"),
        rename("head.modulation_out.weight", "final_layer.adaLN_modulation.1.weight"),
        rename("head.image_out.weight", "final_layer.linear.weight"),
    ]
    sampling = SampleConfig(
        num_ar_steps=0,
        order="raster",
        sampler="dpm++",
        step_spacing="linspace",
        diffusion_steps=[20],
        guidance_scale=4.0,
    )
    return Released(model, _diffusion(s), links, 1, sampling)


def _baseline(s: Shapes) -> Released:
    """With `flatten_input`, tokens are numbers without a patch, and their positions those of a row."""
    grid = s.side(s.shape("pos_embed", 3)[1])
    if "x_embedder.weight" in s:
        (size, channels), patch = s.shape("x_embedder.weight", 2), 1
    else:
        size, channels, patch, _ = s.shape("x_embedder.proj.weight", 4)
    token_dim = channels * patch**2
    fixed = bool((s.state["pos_embed"][0].float() - sincos_positions(size, grid, grid)).abs().max() <= 1e-6)
    model = ModelConfig(
        **_shared(s),
        conditioning="adaln_zero",
        position_embedding="sincos" if fixed else "learnable",
        token_dim=token_dim,
        grid_height=grid,
        grid_width=grid,
    )
    links = [
        *_embedder("image_in", "x_embedder", size, channels, patch, s),
        rename("class_embedding.weight", "y_embedder.embedding_table.weight"),
        rename("timestep_embedding.fc1.weight", "t_embedder.mlp.0.weight"),
        rename("timestep_embedding.fc2.weight", "t_embedder.mlp.2.weight"),
        *blocks(
            model.depth, lambda _: _block(("attn.qkv", "attn.proj", "modulation")), "blocks.#", "blocks.#"
        ),
        rename("modulation_out.weight", "final_layer.adaLN_modulation.1.weight"),
        *out_links(None, token_dim, 1.0, bias=False),
        positions_link(model, "pos_embed"),
    ]
    sampling = SampleConfig(
        sampler="dpm++", step_spacing="linspace", diffusion_steps=[20], guidance_scale=4.0
    )
    return Released(model, _diffusion(s), links, patch, sampling)


def _embedder(ours: str, theirs: str, size: int, channels: int, patch: int, s: Shapes) -> list[Link]:
    """A patch convolution with bias, or a linear layer without."""
    if f"{theirs}.proj.weight" not in s:
        return [rename(f"{ours}.weight", f"{theirs}.weight")]
    weight = Link(
        (f"{ours}.weight",),
        (f"{theirs}.proj.weight",),
        lambda t: [t[0].permute(0, 2, 3, 1).flatten(1)],
        lambda t: [t[0].unflatten(1, (patch, patch, channels)).permute(0, 3, 1, 2)],
    )
    return [weight, rename(f"{ours}.bias", f"{theirs}.proj.bias")]


def _block(names: tuple[str, ...]) -> list[Link]:
    """SiLU is on their `fc1`, which is our gate."""
    theirs = {"modulation": "adaLN_modulation.1"}
    links = [rename(f"{{ours}}.{n}.weight", f"{{theirs}}.{theirs.get(n, n)}.weight") for n in names]
    for ours, name in (("gate", "fc1"), ("fc1", "gate"), ("fc2", "fc2")):
        links.append(rename(f"{{ours}}.mlp.{ours}.weight", f"{{theirs}}.mlp.{name}.weight"))
    return links
