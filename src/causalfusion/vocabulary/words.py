"""Words of earlier versions and of other tools for the options of this one.

OLD: spellings of earlier versions, which work for one more release, with a note.
_ALIASES: words of other tools. The first option in the list that the command has is used.
`advice_on`: words without a counterpart, with what to do instead.
"""

from __future__ import annotations

from causalfusion.config.recipes import SIZES

OLD = {"--vae": "--autoencoder"}
"""Options by their earlier names. Those of settings are in `causalfusion.config.earlier`."""
OLD_POSITIONAL = {"doctor": "--model", "plan": "--model", "estimate": "--config"}
"""Options, by command, whose values earlier versions took without the option's name."""
POSITIONAL = {
    "train": "--data.path",
    "distill": "--teacher",
    "finetune": "--model",
    "encode": "--data.path",
    "tokenizer train": "--data.path",
    "codec train": "--data.path",
    "codec evaluate": "--data.path",
    "sample": "--prompt",
    "probe": "--model",
    "app": "--model",
}
"""The option, by command, of values without an option's name."""
MANY_PATHS = ("--data.path",)
"""Settings with a single value that may be given several on the command line: a shell expands patterns."""

_ALIASES = {
    "--train.lr": "learning-rate",
    "--train.epochs": "epochs max-epochs num-epochs n-epochs num-train-epochs",
    "--train.weight-decay": "wd",
    "--train.ema-decay": "ema ema-rate",
    "--train.checkpoint-every": "save-every ckpt-every save-steps save-interval checkpoint-interval",
    "--train.evaluate-every": "eval-every eval-interval eval-steps",
    "--train.log-every": "log-interval logging-steps",
    "--train.sample-every": "sample-interval",
    "--train.grad-accumulation": "gradient-accumulation-steps grad-accum accumulate-grad-batches",
    "--train.max-grad-norm": "grad-clip clip-grad gradient-clipping",
    "--train.warmup-images": "warmup",
    "--train.init": "pretrained finetune finetune-from init-from",
    "--model.hidden-size": "hidden-dim dim width n-embd d-model embed-dim",
    "--model.depth": "layers num-layers n-layer",
    "--model.num-heads": "heads n-head",
    "--data.path": "data data-path data-dir dataset dataset-path train-data train-data-dir root image-folder "
    "images-dir folder",
    "--images": "n num-images num-samples n-samples count",
    "--variants": "n num-images num-samples n-samples images",
    "--data.image-size": "resolution img-size size image-resolution",
    "--image-size": "resolution img-size size",
    "--batch-size": "b bs batch",
    "--train.batch-size": "b bs batch train-batch-size global-batch-size",
    "--num-workers": "j workers num-worker",
    "--data.num-workers": "j workers num-worker dataloader-num-workers",
    "--out": "o output output-dir outdir out-dir output-path output-file save-dir save-path results-dir",
    "--model": "m ckpt checkpoint ckpt-path checkpoint-path model-path model-dir model-name weights-path",
    "--diffusion-steps": "steps num-steps sampling-steps num-sampling-steps num-inference-steps "
    "inference-steps ddim-steps timesteps num-timesteps",
    "--guidance-scale": "cfg cfg-scale guidance cfg-weight",
    "--guidance-scales": "cfg cfg-scale guidance guidance-scale cfg-scales",
    "--sample.guidance-scale": "cfg cfg-scale guidance",
    "--sampler": "scheduler solver",
    "--samplers": "sampler scheduler solver",
    "--sample.sampler": "scheduler solver",
    "--num-ar-steps": "ar-steps",
    "--ar-steps": "num-ar-steps",
    "--classes": "class label labels class-label class-labels class-name class-names class-id",
    "--class": "classes label class-label class-name class-id",
    "--prompt": "p prompts text caption captions",
    "--prompts-file": "prompt-file",
    "--text.tokenizer": "tokenizer-path",
    "--autoencoder": "ae vae-path",
    "--codec.autoencoder": "vae ae vae-path",
    "--precision": "dtype mixed-precision",
    "--train.precision": "dtype mixed-precision",
    "--reference": "ref reference-path real",
    "--features": "feature feature-extractor",
    "--rank": "lora-rank lora-r r",
    "--alpha": "lora-alpha",
    "--word": "placeholder-token",
    "--like": "initializer-token",
    "--prior-preservation": "with-prior-preservation prior-loss-weight",
    "--prior-images": "num-class-images",
    "--adapters": "adapter lora loras lora-path lora-paths",
    "--adapter-weights": "adapter-weight lora-scale lora-weight lora-weights",
    "--config": "c recipe cfg-file config-file",
}
"""Words of other tools, without dashes, by the option that they mean."""


def words_of_options() -> dict[str, list[str]]:
    """Words of other tools, without dashes, by the option that they mean."""
    return {name: words.split() for name, words in _ALIASES.items()}


def known_option(word: str, names: list[str]) -> str | None:
    """The option, one of a command's `names`, that a word of another tool means, or whose last part the word
    is; None if there is none, or several have that last part."""
    bare = word.lstrip("-")
    fitting = (name for name, words in words_of_options().items() if name in names and bare in words)
    found = next(fitting, None)
    if found is not None:
        return found
    same = same_last_word(word, names)
    return same[0] if len(same) == 1 else None


def same_last_word(word: str, names: list[str]) -> list[str]:
    """The settings, in any table, whose name ends in this word; those of a table before those of a table in
    it."""
    found = [name for name in names if name.rpartition(".")[2] == word.lstrip("-") and "." in name]
    least = min((name.count(".") for name in found), default=0)
    return [name for name in found if name.count(".") == least]


_STEPS = (
    "steps max-steps num-steps train-steps num-train-steps max-train-steps iterations iters max-iters "
    "num-iterations n-iters total-steps"
)
_RESUME = (
    "resume resume-from resume-from-checkpoint resume-path ckpt checkpoint ckpt-path checkpoint-path load "
    "continue auto-resume"
)
_PRECISION = "fp16 bf16 amp half autocast"
_DEVICES = {"cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "gpus": "cuda", "no-cuda": "cpu", "gpu-id": "cuda:0"}


def advice_on(command: str, word: str, value: str | None, names: list[str], batch_size: int) -> str | None:
    """Advice for a word that has no counterpart among a command's options; None if there is none.
    `batch_size` is that of the line; 0: recipes, data or a model say it."""
    bare = word.lstrip("-")
    if command in ("train", "finetune", "estimate") and bare in _STEPS.split():
        advice = "training length is given in images or epochs: --train.images N or --train.epochs N"
        if value is not None and value.isdecimal():
            see = f"see {value} times train.batch_size images"
            if batch_size:
                see = f"of {batch_size} images are --train.images {int(value) * batch_size}"
            advice += f"; {value} steps {see}"
        return f"{word} counts train steps; {advice}"
    if command in ("train", "estimate") and bare == "model":
        if value in SIZES:
            return f"a size is a recipe: --config {value}"
        which = value or "MODEL"
        return f"to begin with the weights of a model: --train.init {which}; sizes are recipes: --config S"
    if command in ("train", "finetune") and bare in _RESUME.split():
        begin = "--train.init MODEL" if command == "train" else "finetune MODEL"
        return f"the same command goes on with its run; to begin with other weights: {begin}"
    if bare in _PRECISION.split():
        precision = next((name for name in ("--precision", "--train.precision") if name in names), None)
        return f"use {precision} bfloat16" if precision else None
    if bare in _DEVICES and "--device" in names:
        return f"use --device {_DEVICES[bare]}"
    if command == "study" and "." in bare:
        return "training settings come from a file: --config FILE.toml"
    if bare in ("negative-prompt", "neg-prompt"):
        return "guidance is against the empty prompt; there is no negative one"
    return None
