"""Distillation: what its target is, against closed forms, and that it is a run like any other."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from causalfusion.cli import run
from causalfusion.codec.tokenizer import Markers
from causalfusion.config import (
    DiffusionConfig,
    DistillConfig,
    FactorizationConfig,
    ModelConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
)
from causalfusion.config.serialize import from_dict, parse_toml
from causalfusion.diffusion.process import make_process
from causalfusion.diffusion.segments import Segments, few_steps
from causalfusion.estimate.cost import distillation_share
from causalfusion.generate.guidance import Guidance
from causalfusion.generate.pipeline import Pipeline
from causalfusion.model.predictions import Predictions
from causalfusion.saved.folder import checkpoints_of, latest_model, load_spec
from causalfusion.train.batch import TokenBatch
from causalfusion.train.distillation import DistillationObjective
from causalfusion.train.log import read_log

MODEL = ModelConfig(hidden_size=32, depth=2, num_heads=2, num_class_tokens=2, num_classes=4, token_dim=3,
                    grid_height=4, grid_width=4)  # fmt: skip
CHAIN = DiffusionConfig(prediction_type="v_prediction")
EPSILON = DiffusionConfig(prediction_type="epsilon")
STRAIGHT = DiffusionConfig(path="rectified_flow", prediction_type="velocity")
PATHS = [CHAIN, EPSILON, STRAIGHT]


class Gaussian(nn.Module):
    """A model of tokens that are N(mean of their class, spread²), where everything is known: the best
    prediction, and with `jumps` the x_0 with which one jump ends where the flow does (a perfect student)."""

    def __init__(self, diffusion: DiffusionConfig, spread: float, guidance: float = 1.0, jumps: int = 0):
        super().__init__()
        self.process, self.spread, self.guidance = make_process(diffusion), spread, guidance
        self.segments = Segments.of(self.process, jumps, 1000 // jumps // 2) if jumps else None

    def forward(self, sequence, backend) -> Predictions:
        noised = next(s for s in sequence.segments if s.role == "noised")
        x, labels = noised.values, sequence.segments[0].values
        levels = noised.timesteps if self.process.config.path == "ddpm" else noised.timesteps / 1000
        mean = self.guidance * self.mean(labels, x) + (1 - self.guidance) * self.mean(0 * labels + 4, x)
        alpha, sigma = self.process.signal(levels, x), self.process.noise_scale(levels, x)
        if self.segments is None:
            shrunk = alpha * self.spread**2 / (alpha**2 * self.spread**2 + sigma**2)
            clean = mean + shrunk * (x - alpha * mean)
        else:
            place = self.segments.places(levels)
            clean = self.segments.by_one_jump(
                x, self.flow(x, mean, place), place, self.segments.end_of(place)
            )
        noise = (x - alpha * clean) / sigma
        return Predictions(self.process.target(clean, noise, levels))

    def flow(self, x: Tensor, mean: Tensor, place: Tensor) -> Tensor:
        """Where the probability flow carries x to the end of its part: (x - α mean) / std stays the same."""
        assert self.segments is not None
        scales = [
            (self.segments.signal[p].float()[..., None], self.segments.noise_scale[p].float()[..., None])
            for p in (place, self.segments.end_of(place))
        ]
        (a, std), (a_end, std_end) = ((a, (a**2 * self.spread**2 + s**2).sqrt()) for a, s in scales)
        return a_end * mean + std_end / std * (x - a * mean)

    @staticmethod
    def mean(labels: Tensor, x: Tensor) -> Tensor:
        return torch.tensor([0.8, -0.5, 0.3, 0.1, -0.2])[labels].to(x)[:, None, None].expand_as(x)


def objective_of(
    diffusion: DiffusionConfig, steps: int, points: int, teacher: nn.Module, guidance=1.0, ahead=1
):
    plan = FactorizationConfig(split="per_image", order="random")
    distill = DistillConfig(teacher="given", steps=steps, teacher_steps=points, ahead=ahead)
    config = RunConfig(model=MODEL, diffusion=diffusion, factorization=plan, distill=distill)
    process = make_process(diffusion)
    return DistillationObjective(
        config,
        process,
        teacher=teacher,
        guidance=Guidance(guidance),
        segments=Segments.of(process, steps, points),
    )


def loss_of(objective: DistillationObjective, student: nn.Module, spread: float, count: int = 24) -> float:
    """The mean error over images of class 1."""
    generator = torch.Generator().manual_seed(3)
    tokens = -0.5 + spread * torch.randn(count, 16, 3, generator=generator)
    batch = TokenBatch(tokens, torch.ones(count, dtype=torch.int64), torch.arange(count))
    draws = objective.draw(batch, seed=0, split_index=0)
    draws = replace(draws, drop_class=torch.zeros_like(draws.drop_class))
    return float(objective.errors(student, objective.arrange(batch, draws)).image.mean())


@pytest.mark.parametrize("diffusion", PATHS, ids=lambda d: f"{d.path}-{d.prediction_type}")
@pytest.mark.parametrize(("steps", "ahead"), [(1, 1), (2, 1), (4, 1), (1, 6), (2, 3)])
def test_a_student_that_knows_the_guided_flow_has_no_loss(diffusion, steps, ahead):
    """Of data that are one point, every step along the flow is exact, and guidance moves the point. Steps
    ahead end where the part of the path does, also at clean data."""
    teacher, student = Gaussian(diffusion, 0.0), Gaussian(diffusion, 0.0, guidance=3.0)
    objective = objective_of(diffusion, steps, 6, teacher, guidance=3.0, ahead=ahead)
    assert loss_of(objective, student, 0.0) < 1e-7
    assert loss_of(objective, teacher, 0.0) > 1e-3, "the teacher is not guided by itself"


@pytest.mark.parametrize(("guidance", "ahead"), [(1.0, 1), (3.0, 1), (3.0, 3)])
def test_the_estimate_counts_its_forward_passes(guidance, ahead):
    teacher, student = Gaussian(STRAIGHT, 0.4), Gaussian(STRAIGHT, 0.4)
    calls = []
    for model in (teacher, student):
        model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    objective = objective_of(STRAIGHT, 1, 6, teacher, guidance, ahead)
    config = replace(objective.config.distill, teacher="given", guidance_scale=guidance)
    loss_of(objective, student, 0.4)
    without_gradient = calls.count(False)
    assert calls.count(True) == 1
    assert distillation_share(replace(objective.config, distill=config)) == without_gradient / 3
    published = replace(config, teacher="")  # a path of the machine that trained it is not told
    assert distillation_share(replace(objective.config, distill=published)) == without_gradient / 3


@pytest.mark.parametrize("steps", [1, 2])
def test_its_loss_falls_with_the_teachers_steps_where_these_are_not_exact(steps):
    teacher, student = Gaussian(STRAIGHT, 0.4), Gaussian(STRAIGHT, 0.4, jumps=steps)
    losses = [loss_of(objective_of(STRAIGHT, steps, n, teacher), student, 0.4) for n in (4, 16, 64)]
    assert losses[0] > 4 * losses[1] > 16 * losses[2]
    assert 100 * losses[2] < loss_of(objective_of(STRAIGHT, steps, 64, teacher), teacher, 0.4)


def test_the_whole_way_of_the_teacher_is_its_sampler():
    """With all steps ahead from pure noise, the target is what DDIM of as many steps makes of it."""
    count, diffusion = 5, STRAIGHT
    teacher, process = Gaussian(diffusion, 0.4), make_process(diffusion)
    objective = objective_of(diffusion, 1, count, teacher, ahead=count)
    tokens, labels = torch.zeros(2, 16, 3), torch.ones(2, dtype=torch.int64)
    batch = TokenBatch(tokens, labels, torch.arange(2))
    draws = objective.draw(batch, seed=0, split_index=0)
    draws = replace(draws, levels=torch.ones(2, 1), drop_class=torch.zeros(2, dtype=torch.bool))
    piece = objective.arrange(batch, draws)
    noised = piece.noised_from(0, process)
    state, sampler = noised.noised, process.sampler(few_steps(process, count), count)
    for index, level in enumerate(sampler.shares):
        at = replace(noised, noised=state, levels=torch.full((2, 1), level))
        state = sampler.step(index, state, objective.predict(teacher, piece, at)[0], None)
    torch.testing.assert_close(objective.target(teacher, piece, noised), state, atol=1e-5, rtol=1e-5)


def test_at_the_first_level_of_one_step_the_target_is_the_students_clean_tokens_a_step_on():
    """K = 1: clean data are the end of the path, so the target at pure noise is the student's own x_0 where
    the teacher's step leads."""
    teacher, student = Gaussian(STRAIGHT, 0.4), Gaussian(STRAIGHT, 0.1)
    objective = objective_of(STRAIGHT, 1, 4, teacher)
    batch = TokenBatch(torch.zeros(2, 16, 3), torch.ones(2, dtype=torch.int64), torch.arange(2))
    draws = replace(objective.draw(batch, seed=0, split_index=0), levels=torch.ones(2, 1))
    piece = objective.arrange(batch, draws)
    noised = piece.noised_from(0, objective.process)
    velocity = objective.predict(teacher, piece, noised)[0]
    after = replace(noised, noised=noised.noised - velocity / 4, levels=torch.full((2, 1), 0.75))
    found = objective.predict(student, piece, after)[0]
    own = objective.process.to_clean(found, after.noised, after.levels)
    torch.testing.assert_close(objective.target(student, piece, noised), own)


def test_all_of_a_batchs_conditions_are_dropped_for_guidance():
    objective = objective_of(CHAIN, 1, 4, nn.Identity(), guidance=2.0)
    batch = TokenBatch(torch.zeros(3, 16, 3), torch.tensor([0, 1, 2]), torch.arange(3))
    draws = replace(
        objective.draw(batch, seed=0, split_index=0), drop_class=torch.tensor([False, False, True])
    )
    piece = objective.arrange(batch, draws)
    assert piece.labels.tolist() == [0, 1, 4] and piece.unconditional is not None
    assert piece.unconditional.labels.tolist() == [4, 4, 4]
    assert piece.unconditional.noise.equal(piece.noise) and piece.unconditional.levels.equal(piece.levels)


SMALL = ["--model.hidden-size", "16", "--model.depth", "1", "--model.num-heads", "2"]
FEW = ["--train.images", "96", "--train.batch-size", "16", "--train.evaluate-every", "0"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    assert run(["train", "--config", "digits", *SMALL, *FEW, "--out", str(out)]) == 0
    return out


@pytest.fixture
def command(teacher, tmp_path):
    def make(out: str, *options: str, model: Path = teacher, images: int = 96) -> list[str]:
        length = ["--train.images", str(images)]
        return ["distill", str(model), *options, *length, "--out", str(tmp_path / out)]

    return make


def test_a_student_says_how_it_is_sampled_and_begins_as_its_teacher(command, tmp_path, teacher, capsys):
    assert run(command("fast", "--steps", "2", "--train.lr", "1e-9")) == 0
    folder = latest_model(tmp_path / "fast")
    sampling = from_dict(SampleConfig, parse_toml((folder / "sample.toml").read_bytes(), "sample"))
    assert sampling == few_steps(make_process(CHAIN), 2) and sampling.guidance_scale == 1
    settings = json.loads((folder / "state" / "run.json").read_text())
    assert settings["distill"]["guidance_scale"] == 1.5, "that of the teacher's own sample.toml"
    assert settings["train"]["lr_schedule"] == "cosine" and settings["train"]["batch_size"] == 16
    assert settings["data"]["holdout"] == 0.2 and settings["train"]["class_dropout"] == 0
    before, after = load_spec(latest_model(teacher)), load_spec(folder)
    assert (after.model, after.codec, after.class_names) == (before.model, before.codec, before.class_names)
    was, now = (load_file(path / "model.safetensors") for path in (latest_model(teacher), folder))
    assert max(float((was[name] - now[name]).abs().max()) for name in was) < 1e-6
    assert not list((tmp_path / "fast").rglob("*teacher*")), "the teacher is not stored again"
    assert (
        run(["sample", "--model", str(tmp_path / "fast"), "--images", "2", "--out", str(tmp_path / "s")]) == 0
    )


def test_a_resumed_distillation_is_the_same(command, tmp_path, teacher):
    options = ["--steps", "1", "--train.checkpoint-every", "2", "--train.lr-schedule", "constant"]
    assert run(command("whole", *options)) == 0
    assert run(command("parts", *options, images=48)) == 0
    moved = tmp_path / "elsewhere"
    shutil.copytree(latest_model(teacher), moved)
    assert run(command("parts", *options, model=moved)) == 0
    for name in ("model.safetensors", "raw.safetensors", "state/optimizer.safetensors"):
        one, two = (load_file(latest_model(tmp_path / out) / name) for out in ("whole", "parts"))
        assert all(one[key].equal(two[key]) for key in one)


def test_a_student_can_be_a_teacher_without_guidance(command, tmp_path, capsys):
    """It never saw an image without its class."""
    assert run(command("four", "--steps", "4", images=32)) == 0
    assert run(command("one", "--steps", "1", model=tmp_path / "four", images=32)) == 0
    assert run(command("two", "--steps", "2", "--guidance-scale", "2", model=tmp_path / "four")) == 2
    assert "expected --guidance-scale 1, not 2" in capsys.readouterr().err


def test_another_teacher_is_refused(command, tmp_path, teacher, capsys):
    assert run(command("fast", "--steps", "1")) == 0
    other = tmp_path / "other"
    assert run(["train", "--config", "digits", *SMALL, *FEW, "--train.seed", "1", "--out", str(other)]) == 0
    assert (
        run(["distill", str(other), "--steps", "1", "--train.images", "128", "--out", str(tmp_path / "fast")])
        == 2
    )
    assert "are not those of the teacher that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "distill.steps is 0; expected 1 to 4"),
        (["--steps", "5"], "distill.steps is 5; expected 1 to 4"),
        ([], "distill needs --steps: the student's diffusion steps in each AR step, 1 to 4"),
        (["--steps", "1", "--teacher-steps", "0"], "distill.teacher_steps is 0"),
        (["--steps", "1", "--teacher-steps", "2000"], "expected at most 1000"),
        (["--steps", "1", "--ahead", "9"], "distill.ahead is 9; expected 1 to teacher_steps 8"),
        (
            ["--steps", "1", "--data.source", "shapes"],
            "images of shapes have 3 channels (colour), the model's 1 channel",
        ),
        (["--steps", "1", "extra"], "unexpected 'extra'; distill takes one model"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, capsys, options, message):
    assert run(command("fast", *options)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not checkpoints_of(tmp_path / "fast")


def test_a_teacher_and_its_data_are_asked_for(tmp_path, capsys):
    assert run(["distill", "--steps", "1"]) == 2
    assert "distill needs a model" in capsys.readouterr().err
    assert run(["distill", str(tmp_path), "--steps", "1"]) == 2
    assert "holds no model" in capsys.readouterr().err
    assert run(["distill", "shapes", "--steps", "1", "--out", str(tmp_path / "fast")]) == 2
    assert "does not say on what it was trained" in capsys.readouterr().err


def test_a_student_has_its_teachers_classes_and_another_folder(teacher, tmp_path, capsys):
    assert run(["distill", str(teacher), "--steps", "1", "--out", f"{teacher}/."]) == 2
    assert "is the teacher; give another folder" in capsys.readouterr().err
    grey = {"images": np.zeros((16, 8, 8), np.uint8), "labels": np.arange(16) % 12}
    np.savez(tmp_path / "grey.npz", **grey)
    data = ["--data.source", "npz", "--data.path", str(tmp_path / "grey.npz")]
    assert run(["distill", str(teacher), "--steps", "1", *data, "--out", str(tmp_path / "fast")]) == 2
    assert f"the data have 12 classes; expected the 10 of the teacher {teacher}" in capsys.readouterr().err


def test_a_model_with_a_head_of_its_tokens_is_refused(tmp_path, capsys):
    out = tmp_path / "run"
    per_token = ["--model.head.kind", "per_token", "--model.head.depth", "1"]
    assert run(["train", "--config", "digits", *SMALL, *per_token, *FEW, "--out", str(out)]) == 0
    assert run(["distill", str(out), "--steps", "1", "--out", str(tmp_path / "fast")]) == 2
    assert "whose noised tokens go through the transformer" in capsys.readouterr().err


def test_a_student_of_text_keeps_its_text_loss_and_any_number_of_ar_steps(tmp_path, capsys):
    out, length = tmp_path / "fast", ["--train.images", "32", "--train.batch-size", "8"]
    options = ["--data.source", "shapes", "--steps", "1", "--teacher-steps", "4", "--train.log-every", "1"]
    options += ["--train.evaluate-every", "0"]
    assert run(["distill", "shapes", *options, *length, "--out", str(out)]) == 0
    records = [record for record in read_log(out / "log.jsonl") if record["kind"] == "train"]
    assert len(records) == 4 and all(0 < r["text_loss"] < 2 and 0 < r["image_loss"] < 0.1 for r in records)
    settings = json.loads((latest_model(out) / "state" / "run.json").read_text())
    own = load_spec(latest_model(Path("shapes"))).text.loss_coefficient
    assert settings["distill"]["guidance_scale"] == 3 and settings["text"]["loss_coefficient"] == own
    pipeline = Pipeline.load(latest_model(out))
    for count in (1, 2, 4, 8):
        sample = replace(few_steps(pipeline.process, 1), num_ar_steps=count)
        assert pipeline.generate(config=sample, prompts=["a red star"]).shape == (1, 3, 32, 32)


def test_guidance_leads_away_from_an_empty_caption():
    """With the image first there is no condition, and nothing that follows it is read."""
    config = RunConfig(
        model=replace(MODEL, num_class_tokens=0, vocab_size=20, max_text_tokens=16),
        text=TextConfig(tokenizer="given", caption_first=0.5, image_first=0.5, caption_dropout=0.0),
        distill=DistillConfig(teacher="given", steps=1),
    )
    process = make_process(config.diffusion)
    markers = Markers(text=0, text_end=1, image=2, image_end=3, end=4)
    objective = DistillationObjective(
        config,
        process,
        markers,
        teacher=nn.Identity(),
        guidance=Guidance(3.0),
        segments=Segments.of(process, 1, 4),
    )
    captions = tuple([7, 8, 9] for _ in range(12))
    batch = TokenBatch(torch.zeros(12, 16, 3), torch.zeros(12, dtype=torch.int64), torch.arange(12), captions)
    piece = objective.arrange(batch, objective.draw(batch, seed=0, split_index=0))
    assert (
        piece.layout is not None
        and piece.unconditional is not None
        and set(piece.text)
        == {
            "caption_first",
            "image_first",
        }
    )
    found = piece.unconditional.layout
    assert found is not None and not found.read and piece.layout.read
    assert (piece.layout.text_ids == 8).any(1).all() and not (found.text_ids == 8).any()


def test_tables_are_copied_to_a_device_once():
    """A copy waits for a GPU, between two passes of the teacher."""

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_to_copy" not in func.__name__
            return func(*args, **(kwargs or {}))

    segments = Segments.of(make_process(STRAIGHT), 2, 4)
    places = torch.ones(2, 1, dtype=torch.int64, device="meta")
    segments.share(places, segments.places(segments.at(places)), places)
    with Copies():
        segments.share(places, segments.places(segments.at(places)), places)
