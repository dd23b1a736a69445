"""The good files that are damaged, how they are made, and the commands that read them."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.malformed.formats import (
    damage_npy,
    damage_npz,
    damage_picture,
    damage_safetensors,
    damage_tar,
)
from benchmarks.malformed.values import Mutation, damage_json, damage_lines, damage_text

SIDE, COUNT = 8, 24
WORDS = ("red", "green", "blue")
CODEC = "--codec.patch-size 4 --device cpu"
TINY = (
    f"{CODEC} --model.hidden-size 32 --model.depth 1 --model.num-heads 2 --train.batch-size 8 "
    "--train.evaluate-every 0 --data.holdout 0"
)
PHOTOS = "--data.source folder --data.path"
TEXT = (
    "--model.num-class-tokens 0 --model.max-text-tokens 64 --text.vocab-size 300 --text.caption-first 1 "
    "--text.image-first 0"
)
FEW = "--diffusion-steps 2 --device cpu --out out"
EVALUATE = f"--features pixels:4 --image-size {SIDE} --device cpu"
PLAN = (
    "--budget 100s --features pixels:4 --images 8 --samplers ddim --diffusion-steps 2 --ar-steps 1 "
    "--guidance-scales 1 --device cpu --out plan"
)
SAMPLING = """sampler = "ddim"
diffusion_steps = [2]
num_ar_steps = 1
guidance_scale = 1.5
guidance_interval = [0.0, 1.0]
"""
RECIPE = """[data]
source = "folder"
path = "photos"
flip = true

[codec]
patch_size = 4

[model]
hidden_size = 32
depth = 2
num_heads = 2

[train]
images = 800
batch_size = 8
lr = 1e-3
"""


def make_data(base: Path) -> None:
    """Pictures of two classes with captions, in every form; a mask, prompts, recipes, a checkpoint."""
    rng, lines = np.random.default_rng(0), []
    arrays = rng.integers(0, 255, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
    with tarfile.open(base / "shard.tar", "w") as tar:
        for index, pixels in enumerate(arrays):
            folder, caption = base / "photos" / "ab"[index % 2], f"a {WORDS[index % 3]} picture {index}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index}.png")
            (folder / f"{index}.txt").write_text(caption + "\n")
            lines.append(
                json.dumps(
                    {"image": f"photos/{'ab'[index % 2]}/{index}.png", "label": index % 2, "caption": caption}
                )
            )
            content = (folder / f"{index}.png").read_bytes()
            about = json.dumps({"label": index % 2, "caption": caption}).encode()
            parts = {"png": content, "cls": b"%d" % (index % 2), "txt": caption.encode(), "json": about}
            for ending in ("png", "cls", "txt", "json"):
                member = tarfile.TarInfo(f"{index:04d}.{ending}")
                member.size = len(parts[ending])
                tar.addfile(member, io.BytesIO(parts[ending]))
    (base / "list.jsonl").write_text("\n".join(lines) + "\n")
    np.savez(base / "images.npz", images=arrays, labels=np.arange(COUNT) % 2)
    (base / "pictures").mkdir()
    for ending in ("png", "jpg", "webp", "gif", "bmp", "tif"):
        Image.fromarray(arrays[0]).save(base / "pictures" / f"picture.{ending}")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(base / "mask.png")
    (base / "prompts.txt").write_text("a red picture 0\na green picture 1\n")
    (base / "sample.toml").write_text(SAMPLING)
    (base / "recipe.toml").write_text(RECIPE)
    _checkpoint(base / "official.pt")


def _checkpoint(path: Path) -> None:
    """In the form of the released ones; its weights are not theirs, and it is refused for that, by name."""
    import torch

    weights = {"x_embedder.weight": torch.zeros(32, 16), "pos_embed": torch.zeros(1, 4, 32)}
    torch.save({"ema": weights, "model": weights, "args": {"model": "S"}}, path)


def good_commands(base: Path) -> list[list[str]]:
    """The commands that make the other files, in the folder with the data."""
    run = f"train {TINY} {PHOTOS} photos --train.images 16 --train.log-every 1"
    commands = [
        f"{run} --out run --text.tokenizer train {TEXT}",
        f"{run} --out labelled",
        f"encode {CODEC} {PHOTOS} photos --out cache",
        f"sample --model labelled --images 8 {FEW} --output png npz",
        f"evaluate --samples out --reference photos {EVALUATE} --out evaluation",
        f"plan {base}/labelled --reference {base}/photos {PLAN}",
    ]
    return [command.split() for command in commands]


@dataclass(frozen=True)
class Kind:
    name: str
    copies: tuple[str, ...]
    """Files and folders of the base that a case has of its own."""
    damaged: tuple[str, ...]
    """Patterns; a file of one of them is damaged."""
    mutation: Mutation | None
    """None: pickles."""
    command: str
    """{file} is the damaged file, {base} the folder of the good ones."""

    @property
    def is_refused(self) -> bool:
        """True if the good file is refused, too: a checkpoint of others with weights that are not theirs."""
        return self.mutation is None


_SAMPLE = f"sample --images 2 {FEW} --model"
_ENCODE = f"encode {CODEC} --out out"
_RESUME = f"train {TINY} {PHOTOS} {{base}}/photos --train.images 32 --train.log-every 1 --out labelled"
_BEGIN = f"train {TINY} --train.images 8 --out out"
_EVALUATE = f"evaluate {EVALUATE} --reference {{base}}/photos --out out --samples"
_EDIT = f"--model {{base}}/run --prompt red {FEW}"
_STEP = "checkpoints/*"
_MODEL = {
    "model: config.json": ("labelled", "config.json", damage_json),
    "model: config.json, with text": ("run", "config.json", damage_json),
    "model: weights": ("labelled", "*.safetensors", damage_safetensors),
    "model: tokenizer.json": ("run", "tokenizer.json", damage_json),
}
_STATE = {
    "training: state": (f"{_STEP}/state/*.json", damage_json),
    "training: optimizer": (f"{_STEP}/state/*.safetensors", damage_safetensors),
    "training: log.jsonl": ("log.jsonl", damage_lines),
}
_FILES = {
    "checkpoint of others": ("official.pt", None, "convert official {file} --out out"),
    "autoencoder": (
        "official.pt",
        None,
        f"{_ENCODE} {PHOTOS} {{base}}/photos --codec.autoencoder {{file}}",
    ),
    "tar": ("shard.tar", damage_tar, f"{_ENCODE} --data.source webdataset --data.path {{file}}"),
    "npz of images": ("images.npz", damage_npz, f"{_ENCODE} --data.source npz --data.path {{file}}"),
    "npz of samples": ("images.npz", damage_npz, f"{_EVALUATE} {{file}}"),
    "mask": ("mask.png", damage_picture, f"edit {{base}}/photos/a/0.png --mask {{file}} {_EDIT}"),
    "prompts": ("prompts.txt", damage_text, f"{_SAMPLE} {{base}}/run --prompts-file {{file}}"),
    "sampling recipe": ("sample.toml", damage_text, f"{_SAMPLE} {{base}}/labelled --config {{file}}"),
    "reference statistics": (
        "reference.npz",
        damage_npz,
        f"evaluate {EVALUATE} --samples {{base}}/out --reference {{file}} --out out",
    ),
}
KINDS = [
    *(
        Kind(
            name,
            (run,),
            (f"{run}/{_STEP}/{file}",),
            damage,
            f"{_SAMPLE} {run}" + " --prompt red" * (run == "run"),
        )
        for name, (run, file, damage) in _MODEL.items()
    ),
    *(
        Kind(name, ("labelled",), (f"labelled/{file}",), damage, _RESUME)
        for name, (file, damage) in _STATE.items()
    ),
    *(Kind(name, (file,), (file,), damage, command) for name, (file, damage, command) in _FILES.items()),
    Kind(
        "tokenizer to train with",
        ("run",),
        (f"run/{_STEP}/tokenizer.json",),
        damage_json,
        f"{_BEGIN} {PHOTOS} {{base}}/photos {TEXT} --text.tokenizer {{file}}",
    ),
    Kind(
        "training recipe",
        ("photos", "recipe.toml"),
        ("recipe.toml",),
        damage_text,
        "estimate {file} --gpu h100",
    ),
    Kind(
        "jsonl",
        ("photos", "list.jsonl"),
        ("list.jsonl",),
        damage_lines,
        f"{_ENCODE} --data.source jsonl --data.path {{file}}",
    ),
    Kind(
        "folder of pictures", ("photos",), ("photos/*/*.png",), damage_picture, f"{_ENCODE} {PHOTOS} photos"
    ),
    Kind(
        "captions",
        ("photos",),
        ("photos/*/*.txt",),
        damage_text,
        f"{_BEGIN} {PHOTOS} photos {TEXT} --text.tokenizer train",
    ),
    Kind(
        "picture to edit",
        ("pictures",),
        ("pictures/*",),
        damage_picture,
        f"edit {{file}} --region right {_EDIT}",
    ),
    Kind(
        "picture to caption",
        ("pictures",),
        ("pictures/*",),
        damage_picture,
        "caption {file} --model {base}/run --device cpu",
    ),
    Kind(
        "card",
        ("evaluation",),
        ("evaluation/card.json",),
        damage_json,
        "compare {file} {base}/evaluation/card.json",
    ),
    Kind(
        "plan",
        ("plan",),
        ("plan/*.json", "plan/**/*.json"),
        damage_json,
        f"plan {{base}}/labelled --reference {{base}}/photos {PLAN}",
    ),
    Kind("sample set: settings", ("out",), ("out/settings.json",), damage_json, f"{_EVALUATE} out"),
    Kind(
        "evaluation, continued",
        ("evaluation",),
        ("evaluation/**/*.json",),
        damage_json,
        f"evaluate {EVALUATE} --samples {{base}}/out --reference {{base}}/photos --out evaluation",
    ),
    Kind(
        "latent cache: manifest",
        ("cache",),
        ("cache/manifest.json",),
        damage_json,
        f"{_BEGIN} --data.cache cache",
    ),
    Kind("latent cache: latents", ("cache",), ("cache/*.npy",), damage_npy, f"{_BEGIN} --data.cache cache"),
    Kind(
        "latent cache: captions",
        ("cache",),
        ("cache/*.jsonl",),
        damage_lines,
        f"{_BEGIN} --data.cache cache {TEXT} --text.tokenizer train",
    ),
]
