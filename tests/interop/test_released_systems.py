"""Released weights of other systems become model folders that generate, and diffusers' DiT goes both ways."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch
from diffusers.models import modeling_utils
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from causalfusion import cli
from causalfusion.codec.patches import patchify
from causalfusion.config import CodecConfig
from causalfusion.config.recipes import load_config
from causalfusion.errors import UserError
from causalfusion.factorization import places_of
from causalfusion.interop.systems.convert import READERS, convert_system
from causalfusion.model.positions import sincos_positions
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, load_spec, load_weights, save_model
from causalfusion.sequence import PackedSequence, class_segment, image_segment

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "parity" / "neighbours"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")
RECORDED = {
    "dit": "dit/A", "sit": "sit/B", "large-dit": "large_dit/A", "fit": "fitv2/B", "mar": "mar/B",
    "latentlm": "latentlm/A",
}  # fmt: skip


def dit_state(size: int = 24, depth: int = 2, grid: int = 4, classes: int = 5) -> dict[str, Tensor]:
    """Random weights with the names and shapes of a small DiT on 4 channels in patches of 2."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (size, 4, 2, 2), "x_embedder.proj.bias": (size,),
        "t_embedder.mlp.0.weight": (size, 256), "t_embedder.mlp.0.bias": (size,),
        "t_embedder.mlp.2.weight": (size, size), "t_embedder.mlp.2.bias": (size,),
        "y_embedder.embedding_table.weight": (classes + 1, size),
        "final_layer.linear.weight": (32, size), "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2 * size, size),
        "final_layer.adaLN_modulation.1.bias": (2 * size,),
    }  # fmt: skip
    layers = {
        "attn.qkv": (3 * size, size), "attn.proj": (size, size), "mlp.fc1": (4 * size, size),
        "mlp.fc2": (size, 4 * size), "adaLN_modulation.1": (6 * size, size),
    }  # fmt: skip
    for number in range(depth):
        for name, (rows, columns) in layers.items():
            shapes[f"blocks.{number}.{name}.weight"] = (rows, columns)
            shapes[f"blocks.{number}.{name}.bias"] = (rows,)
    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state["pos_embed"] = sincos_positions(size, grid, grid)[None]
    return state


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Small ones that halve the sides of pictures three times, by the number of channels."""
    made, layers = {}, 4
    for channels in (4, 8):
        torch.manual_seed(0)
        made[channels] = tmp_path_factory.mktemp("autoencoder")
        AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=channels, block_out_channels=(8,) * layers,
            norm_num_groups=4, layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * layers,
            up_block_types=("UpDecoderBlock2D",) * layers,
        ).save_pretrained(made[channels])  # fmt: skip
    return made


# --- released files -----------------------------------------------------------------------------------


def test_a_bare_state_dict_and_one_with_an_ema(tmp_path: Path) -> None:
    state = dit_state()
    bare = convert_system("dit", saved(state, tmp_path / "bare.pt"), num_heads=3)
    assert bare.raw is None and bare.spec.model.num_heads == 3 and bare.spec.model.predicts_variance
    assert (bare.spec.codec.scale, bare.spec.codec.patch_size, bare.spec.codec.image_height) == (
        0.18215,
        2,
        64,
    )
    assert (bare.sampling.guidance_scale, bare.sampling.guided_channels) == (1.5, 3)
    raw = {name: value + 1 for name, value in state.items() if name != "pos_embed"}
    raw["pos_embed"] = state["pos_embed"]
    for name in ("ema", "model_ema"):
        both = saved({name: state, "model": raw, "optimizer": {}, "epoch": 3}, tmp_path / f"{name}.pt")
        converted = convert_system("dit", both, num_heads=3)
        assert converted.raw is not None
        assert all(torch.equal(converted.weights[key], bare.weights[key]) for key in bare.weights)
        assert torch.equal(converted.raw["image_in.bias"], bare.weights["image_in.bias"] + 1)


def test_sit_is_the_same_network_with_the_opposite_velocity(tmp_path: Path) -> None:
    path = saved(dit_state(), tmp_path / "x.pt")
    dit, sit = (convert_system(name, path, num_heads=3) for name in ("dit", "sit"))
    assert sit.spec.diffusion.path == "rectified_flow" and not sit.spec.model.predicts_variance
    means = dit.weights["image_out.weight"][:16]
    assert torch.equal(sit.weights["image_out.weight"], -means)


@pytest.mark.parametrize(
    ("system", "change", "message"),
    [
        ("dit", {"num_heads": 0}, "width 24 does not tell the number of heads .* --num-heads N"),
        ("dit", {"num_heads": 5}, "num_heads"),
        ("dit", {"num_heads": 500}, "num_heads"),
        ("dit", {"drop": "blocks.1.mlp.fc2.bias"}, "lacks weight blocks.1.mlp.fc2.bias"),
        ("dit", {"add": "blocks.0.extra"}, "has the unknown weight blocks.0.extra"),
        ("dit", {"reshape": "blocks.1.attn.proj.weight"}, "attn.proj.weight"),
        ("dit", {"nan": "x_embedder.proj.bias"}, "x_embedder.proj.bias holds values that are not finite"),
        ("large-dit", {}, "lacks weight x_embedder.weight; it is of another system"),
        ("fit", {}, "weight x_embedder.proj.weight has shape .*, expected 2 dimensions"),
        ("mar", {}, "lacks weight z_proj.weight; it is of another system"),
        ("latentlm", {}, "lacks weight|x_embedder|blocks.0.mlp.gate|another"),
    ],
)
def test_another_system_or_size_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], system: str, change: dict[str, object], message: str
) -> None:
    state, heads = dit_state(), change.get("num_heads", 3)
    if "drop" in change:
        del state[str(change["drop"])]
    if "add" in change:
        state[str(change["add"])] = torch.ones(1)
    if "reshape" in change:
        state[str(change["reshape"])] = torch.ones(7, 5)
    if "nan" in change:
        state[str(change["nan"])][0] = torch.nan
    path = saved(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        convert_system(system, path, num_heads=int(str(heads)))
    out = tmp_path / "out"
    assert cli.run(["convert", system, str(path), "--out", str(out), "--num-heads", str(heads)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and str(path) in said[0] and not out.exists()


@needs_shared
@pytest.mark.parametrize("system", READERS)
def test_recorded_weights_become_models_that_generate(
    system: str, tmp_path: Path, autoencoders: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = SHARED / f"{RECORDED[system]}.weights.safetensors"
    out, pictures = tmp_path / "model", tmp_path / "pictures"
    assert cli.run(["convert", system, str(path), "--out", str(out)]) == 0
    spec, expected = load_spec(out), convert_system(system, path)
    weights = load_weights(out)
    assert all(torch.equal(weights[name], value) for name, value in expected.weights.items())
    assert spec.model == expected.spec.model and spec.diffusion == expected.spec.diffusion
    recommended = tomllib.loads((out / "sample.toml").read_text())
    assert recommended["guidance_scale"] == expected.sampling.guidance_scale > 1
    autoencoder = str(autoencoders[spec.codec.latent_channels])
    model = ["--model", str(out), "--autoencoder", autoencoder]
    words = ["--classes", "1", "2", "--num-images", "2", "--diffusion-steps", "4"]
    assert cli.run(["sample", *words, *model, "--out", str(pictures)]) == 0
    assert len(list(pictures.rglob("*.png"))) >= 2
    assert cli.run(["doctor", *model]) == 0, capsys.readouterr().out


@needs_shared
def test_the_masked_model_edits_a_region_smaller_than_its_ar_steps(
    tmp_path: Path, autoencoders: dict[int, Path]
) -> None:
    path, out = SHARED / "mar" / "B.weights.safetensors", tmp_path / "model"
    assert cli.run(["convert", "mar", str(path), "--out", str(out)]) == 0
    model = ["--model", str(out), "--autoencoder", str(autoencoders[4])]
    size = load_spec(out).codec.image_height
    from PIL import Image

    Image.new("RGB", (size, size), (200, 30, 60)).save(tmp_path / "photo.png")
    words = ["edit", str(tmp_path / "photo.png"), "--region", "center", "--classes", "1"]
    assert cli.run([*words, "--diffusion-steps", "3", *model, "--out", str(tmp_path / "edited")]) == 0


@needs_shared
def test_settings_beside_a_fit_are_read(tmp_path: Path) -> None:
    path = SHARED / "fitv2" / "B.weights.safetensors"
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["config"])
    bare = tmp_path / "model.safetensors"
    save_file(load_file(path), bare)
    with pytest.raises(UserError, match="--num-heads"):
        convert_system("fit", bare)
    lines = [f"      {key}: {json.dumps(value)}" for key, value in settings.items()]
    head = ["diffusion:", "  network_config:", "    target: some.class", "    params:"]
    (tmp_path / "config.yaml").write_text("\n".join([*head, *lines]) + "\n")
    converted = convert_system("fit", bare)
    assert converted.spec.model == convert_system("fit", path).spec.model
    assert converted.spec.model.rope.extrapolation == "ntk"


@needs_shared
def test_settings_of_another_fit_in_the_folder_are_not_taken(tmp_path: Path) -> None:
    """Weights of several sizes, or for several sizes of images, are kept together, and so are their files."""
    path = SHARED / "fitv2" / "B.weights.safetensors"
    with safe_open(path, "pt") as file:
        known = json.loads(file.metadata()["config"])
    weights, expected = tmp_path / "fit.safetensors", convert_system("fit", path).spec.model
    save_file(load_file(path), weights)

    def settings(name: str, **changes: object) -> None:
        (tmp_path / name).write_text(json.dumps({"network_config": {"params": {**known, **changes}}}))

    settings("a.yaml", hidden_size=2 * expected.hidden_size, num_heads=2 * expected.num_heads)
    settings("b.yaml", depth=expected.depth + 1, num_heads=1)
    settings("c.yaml")
    converted = convert_system("fit", weights)
    assert converted.spec.model == expected
    told = [note for note in converted.notes if "of another size, and not used" in note]
    assert [note.split()[3] for note in told] == ["a.yaml", "b.yaml"]
    settings("d.yaml", num_heads=1)
    with pytest.raises(UserError, match=r"settings that differ, c.yaml, d.yaml; name those of .* fit.yaml$"):
        convert_system("fit", weights)
    settings("fit.yaml")
    assert convert_system("fit", weights).spec.model == expected


@needs_shared
@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ({"q_norm": "rmsnorm", "k_norm": "rmsnorm"}, "q_norm and k_norm is"),
        ({"k_norm": None}, "q_norm and k_norm is"),
        ({"rel_pos_embed": "xpos"}, "rel_pos_embed is 'xpos'; expected rope"),
        ({"add_rel_pe_to_v": True}, "add_rel_pe_to_v is True; expected false"),
    ],
)
def test_a_fit_that_computes_otherwise_is_refused(setting, answer, tmp_path: Path) -> None:
    """No weight tells these settings; without them, it would be another network."""
    path = SHARED / "fitv2" / "B.weights.safetensors"
    with safe_open(path, "pt") as file:
        known = json.loads(file.metadata()["config"])
    changed = tmp_path / "model.safetensors"
    save_file(load_file(path), changed, {"config": json.dumps({**known, **setting})})
    with pytest.raises(UserError, match=answer):
        convert_system("fit", changed)


@needs_shared
@pytest.mark.parametrize(("channels", "grid"), [(8, 32), (16, 16)], ids=["8 pixels", "16 pixels a latent"])
def test_the_size_of_images_of_a_latentlm_follows_its_autoencoder(channels, grid, tmp_path: Path) -> None:
    """That of 16 channels has latents of 16 pixels a side, where those of the other systems have 8."""
    path = SHARED / "latentlm" / "A.weights.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    for name, dim in (("final_layer.linear", 0), ("x_embedder.proj", 1), ("noisy_x_embedder.proj", 1)):
        state[f"{name}.weight"] = torch.cat([state[f"{name}.weight"]] * (channels // 8), dim)
    save_file(state, tmp_path / "model.safetensors", metadata)
    spec = convert_system("latentlm", tmp_path / "model.safetensors", image_size=256).spec
    assert spec.model.grid_height == spec.model.grid_width == grid
    assert (spec.codec.image_height, spec.codec.downsample * grid) == (256, 256)


@needs_shared
@pytest.mark.parametrize("system", ["dit", "sit", "mar"])
def test_a_size_that_the_weights_contradict_is_refused(system, tmp_path: Path) -> None:
    path = SHARED / system / "A.weights.safetensors"
    side = convert_system(system, path).spec.codec.image_height
    assert side and convert_system(system, path, image_size=side).spec.codec.image_height == side
    with pytest.raises(UserError, match=rf"image-size is {2 * side}; the weights of .* of {side} pixels"):
        convert_system(system, path, image_size=2 * side)


@needs_shared
def test_a_patch_size_that_the_weights_contradict_is_refused() -> None:
    path = SHARED / "dit" / "A.weights.safetensors"
    patch = convert_system("dit", path).spec.codec.patch_size
    assert convert_system("dit", path, patch_size=patch).spec.codec.patch_size == patch
    with pytest.raises(
        UserError, match=rf"patch-size is {2 * patch}; the weights of .* of patches of {patch}"
    ):
        convert_system("dit", path, patch_size=2 * patch)


# --- diffusers ----------------------------------------------------------------------------------------


def diffusers_dit(frequencies: bool = True) -> DiTTransformer2DModel:
    """Random weights; with `frequencies`, those of the timestep that DiT's own code has."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=5, norm_eps=1e-6,
    ).eval()  # fmt: skip
    first = model.transformer_blocks[0].norm1.emb
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first.state_dict())
        if frequencies:
            block.norm1.emb.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    return model


@torch.no_grad()
def outputs(weights: dict[str, Tensor], config: object, latents: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Ours, as maps of means and of variances."""
    from causalfusion.codec.patches import unpatchify
    from causalfusion.config import ModelConfig

    assert isinstance(config, ModelConfig)
    model = Transformer(config)
    model.load_state_dict(weights)
    tokens = patchify(latents, 2)
    count = tokens.shape[1]
    places = places_of(torch.arange(count)[None], config.grid_width)
    image = image_segment("noised", tokens, torch.ones(1, count, dtype=torch.int64), places, t[:, None])
    out = model(PackedSequence((class_segment(y, 0), image))).image
    parts = [unpatchify(part, 4, 4, 2) for part in out.split(config.token_dim, dim=-1)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def test_diffusers_dit_has_the_same_outputs_and_comes_back_bit_for_bit(tmp_path: Path, monkeypatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning", lambda text, *_: told.append(text))
    theirs = diffusers_dit()
    theirs.save_pretrained(tmp_path / "theirs" / "transformer")
    converted = convert_system("dit", tmp_path / "theirs")
    assert any("127" in note for note in converted.notes)
    assert not told  # such as that accelerate, which nobody needs here, is not installed
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    t, y = torch.tensor([3, 500, 999]), torch.tensor([0, 4, 5])
    expected = theirs(latents, timestep=t, class_labels=y).sample
    ours = outputs(converted.weights, converted.spec.model, latents, t, y)
    assert float((ours - expected).abs().max() / expected.abs().max()) <= 1e-5
    assert float(expected.abs().max()) > 0.5

    model, back = tmp_path / "model", tmp_path / "back"
    assert cli.run(["convert", "dit", str(tmp_path / "theirs"), "--out", str(model)]) == 0
    assert cli.run(["convert", "diffusers", str(model), "--out", str(back)]) == 0
    again = DiTTransformer2DModel.from_pretrained(back)
    state = theirs.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    second = convert_system("dit", back)
    assert all(torch.equal(second.weights[k], v) for k, v in converted.weights.items())


def test_a_dit_of_our_own_training_is_written_for_diffusers(tmp_path: Path) -> None:
    """The recipe says the ratio of its MLP, not the width."""
    sizes = {"hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    image = {"token_dim": 16, "grid_height": 4, "grid_width": 4, "predicts_variance": True}
    recipe = load_config("dit", model=sizes | image)
    codec = CodecConfig(autoencoder="someone/vae", patch_size=2, latent_channels=4, downsample=8)
    spec = ModelSpec(model=recipe.model, codec=codec, diffusion=recipe.diffusion)
    weights = Transformer(recipe.model).state_dict()
    save_model(tmp_path / "model", spec, weights)
    assert cli.run(["convert", "diffusers", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 0
    back = convert_system("dit", tmp_path / "out").weights
    assert back.keys() == weights.keys() and all(back[name].equal(v) for name, v in weights.items())


@torch.no_grad()
def test_the_note_on_frequencies_is_true() -> None:
    """diffusers' own spacing of the frequencies changes the outputs of the same weights."""
    latents, t, y = torch.zeros(1, 4, 8, 8), torch.tensor([500]), torch.tensor([1])
    ends = [diffusers_dit(own)(latents, timestep=t, class_labels=y).sample for own in (True, False)]
    assert float((ends[0] - ends[1]).abs().max()) > 1e-2


def test_what_is_no_dit_is_not_written_or_read(tmp_path: Path) -> None:
    different = diffusers_dit()
    different.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias.data.add_(1)
    different.save_pretrained(tmp_path / "different")
    with pytest.raises(UserError, match="its blocks have different timestep_embedder"):
        convert_system("dit", tmp_path / "different")
    with pytest.raises(UserError, match=r"no config\.json"):
        convert_system("dit", tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        convert_system("mar", tmp_path)
    assert cli.run(["convert", "diffusers", "shapes", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
