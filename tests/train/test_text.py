"""Training on texts and images: the draws, the loss, and plain language modelling as a special case."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from causalfusion.codec.tokenizer import Markers, Tokenizer, train_tokenizer
from causalfusion.config import (
    CodecConfig,
    DiffusionConfig,
    FactorizationConfig,
    ModelConfig,
    RunConfig,
    TextConfig,
    TrainConfig,
)
from causalfusion.diffusion.process import make_process
from causalfusion.documents import NO_TARGET, Image, Text
from causalfusion.errors import UserError
from causalfusion.factorization import loss_weights
from causalfusion.machine.processes import World
from causalfusion.model.transformer import Transformer
from causalfusion.train.arrange import caption_limit, documents_of
from causalfusion.train.draws import ARRANGEMENTS, Draws, TextDraw, draw, draw_text, seen_by_text
from causalfusion.train.feed import open_training_data
from causalfusion.train.loss_map import loss_map
from causalfusion.train.step import Arranged, Errors, Objective, TokenBatch
from causalfusion.train.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))
PROCESS = make_process(DiffusionConfig())
MARKERS = Markers(text=20, text_end=21, image=22, image_end=23, end=24)
MODEL = ModelConfig(hidden_size=32, depth=2, num_heads=2, num_class_tokens=0, num_classes=3, token_dim=3,
                    grid_height=2, grid_width=3, vocab_size=25, max_text_tokens=40)  # fmt: skip


def shares(**given: float) -> TextConfig:
    """A mixture of arrangements; those not named do not occur."""
    zero = dict.fromkeys(ARRANGEMENTS, 0.0)
    return TextConfig(tokenizer="train", **{**zero, **given})


def randomise(model: torch.nn.Module, std: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)


def batch_of(num: int, model: ModelConfig, base: int = 20, first: int = 0, longest: int = 9) -> TokenBatch:
    """Captions of 0 to `longest` tokens below `base`, very unlike in length."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(num, model.num_tokens, model.token_dim, generator=generator)
    labels = torch.randint(model.num_classes, (num,), generator=generator)
    captions = tuple(
        torch.randint(base, (i * 7 % (longest + 1),), generator=generator).tolist() for i in range(num)
    )
    return TokenBatch(tokens, labels, torch.arange(first, first + num), captions)


def draws_of(text: TextConfig, num: int, factorization=None, model: ModelConfig = MODEL, first: int = 0):
    return draw(
        factorization or FactorizationConfig(), model, PROCESS, 0.0, seed=5, split_index=0,
        sample_indices=range(first, first + num), text=text,
    )  # fmt: skip


def errors_of(
    model: Transformer, text: TextConfig, batch: TokenBatch, draws: Draws, backend="auto"
) -> tuple[Errors, Arranged]:
    """The errors in documents, and what stands in these."""
    train = TrainConfig(attention=backend, batch_size=len(batch.tokens))
    objective = Objective(RunConfig(model=model.config, text=text, train=train), PROCESS, MARKERS)
    piece = objective.arrange(batch, draws)
    return objective.errors(model, piece), piece


def targets_of(piece: Arranged) -> Tensor:
    """(documents, n) bool: where a text token is to be predicted."""
    assert piece.layout is not None
    return piece.layout.text_targets != NO_TARGET


# --- draws ----------------------------------------------------------------------------------------------


def test_shares_of_arrangements_and_dropped_captions():
    """Within five standard deviations of their probabilities, and independent of each other."""
    config = shares(caption_first=0.45, image_first=0.25, image_only=0.2, text_only=0.1)
    config = replace(config, caption_dropout=0.3)
    num = 4000
    draws = draw_text(config, seed=1, sample_indices=range(num))

    def near(count: int, of: int, p: float) -> bool:
        return abs(count - of * p) < 5 * math.sqrt(of * p * (1 - p))

    for name in ARRANGEMENTS:
        chosen = [d for d in draws if d.arrangement == name]
        assert near(len(chosen), num, getattr(config, name)), name
        assert near(sum(d.drop_caption for d in chosen), len(chosen), 0.3), name
    assert {d.arrangement for d in draw_text(shares(text_only=1.0), seed=1, sample_indices=range(500))} \
        == {"text_only"}  # fmt: skip
    never = draw_text(replace(config, caption_dropout=0.0), seed=1, sample_indices=range(500))
    assert not any(d.drop_caption for d in never)


def test_draws_are_functions_of_seed_and_place():
    text, factorization = TextConfig(tokenizer="train"), FactorizationConfig(split="per_image")
    whole, part = draws_of(text, 64, factorization), draws_of(text, 24, factorization, first=40)
    assert whole.text[40:] == part.text and whole.levels[40:].equal(part.levels)
    assert whole.noise[40:].equal(part.noise)
    other = draw_text(text, seed=6, sample_indices=range(64))
    assert other != whole.text
    # A run without text draws the same images' noise and noise levels.
    plain = draw(factorization, MODEL, PROCESS, 0.0, seed=5, split_index=0, sample_indices=range(64))
    assert plain.noise.equal(whole.noise) and plain.levels.equal(whole.levels)


@pytest.mark.parametrize("group", [1, 2])
def test_transfusion_limits_the_noise_that_text_sees(group):
    """Exactly where a text of the same document follows; uniform below the limit, and uniform elsewhere."""
    config = shares(caption_first=0.4, image_first=0.3, image_only=0.2, text_only=0.1)
    config = replace(config, image_context="noised", max_context_timestep=300, examples_per_sequence=group)
    one_block = FactorizationConfig(distribution="fixed")
    draws = draws_of(config, 2000, one_block)
    free = draws_of(replace(config, image_context="clean"), 2000, one_block)
    limited, other = [], []
    captions = [[1]] * 2000
    documents = documents_of(captions, draws.text, group)
    used = [i for i, d in enumerate(draws.text) if d.arrangement != "text_only"]
    for document in documents:
        for place, element in enumerate(document):
            if isinstance(element, Image):
                example = used[element.row]
                t, before = int(draws.levels[example]), int(free.levels[example])
                if any(isinstance(e, Text) for e in document[place + 1 :]):
                    assert t < 300
                    limited.append(t / 300)
                else:
                    assert t == before
                    other.append(t / 1000)
    for levels in (limited, other):
        assert len(levels) > 300
        counts = torch.histc(torch.tensor(levels), 5, 0, 1)
        expected = len(levels) / 5
        assert float(((counts - expected) ** 2 / expected).sum()) < 30  # chi², 4 degrees of freedom
    assert free.levels.max() > 900


def test_elements_in_the_order_that_is_drawn():
    names = ("caption_first", "image_first", "image_only", "text_only", "caption_first", "image_first")
    drops = (False, True, True, True, True, False)
    draws = [TextDraw(name, drop) for name, drop in zip(names, drops, strict=True)]
    captions = [[i] for i in range(6)]
    flat = [element for document in documents_of(captions, draws, 1) for element in document]
    nothing = Text((), learn=False)
    # Only a caption before its image is left empty; the images that are used are numbered in order.
    assert flat == [
        Text((0,)), Image(0), Image(1), Text((1,)), Image(2), Text((3,)), nothing, Image(3), Image(4),
        Text((5,)),
    ]  # fmt: skip
    grouped = documents_of(captions, draws, 3)
    assert [len(d) for d in grouped] == [5, 5] and [e for d in grouped for e in d] == flat
    assert seen_by_text(draws, 1).tolist() == [False, True, False, False, False, True]
    assert seen_by_text(draws, 3).tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize(("room", "group"), [(6, 1), (64, 1), (64, 2), (41, 3)])
def test_the_longest_captions_just_fit(room, group):
    """`caption_limit` is the most that the markers leave room for."""
    limit = caption_limit(room, group)
    model = Transformer(replace(MODEL, max_text_tokens=room, max_images=group))
    config = replace(shares(caption_first=1.0), examples_per_sequence=group, caption_dropout=0.0)
    batch = replace(batch_of(group, MODEL), captions=tuple([1] * limit for _ in range(group)))
    draws = draws_of(config, group)
    found, _ = errors_of(model, config, batch, draws)
    assert room - group < found.text.shape[1] <= room
    with pytest.raises(UserError, match=f"expected at least {5 * group + 1} for {group} captions"):
        caption_limit(5 * group, group)


# --- plain language modelling ---------------------------------------------------------------------------


def language_model_loss(model: Transformer, ids: list[int]) -> Tensor:
    """Σ over the tokens of -log p(next): an ordinary causal transformer, written anew, on these weights."""
    config = model.config
    heads, size = config.num_heads, config.hidden_size
    tokens = torch.tensor(ids)
    x = model.text_embedding.weight[tokens] + model.text_position.weight[: len(ids)]
    for block in model.blocks:
        h = F.layer_norm(x, (size,), block.norm1.weight, block.norm1.bias)
        q, k, v = (
            part.view(len(ids), heads, size // heads).transpose(0, 1)
            for part in (h @ block.attn.qkv.weight.T).split(size, dim=-1)
        )
        q = F.layer_norm(q, (size // heads,), block.attn.q_norm.weight, block.attn.q_norm.bias)
        k = F.layer_norm(k, (size // heads,), block.attn.k_norm.weight, block.attn.k_norm.bias)
        seen = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        x = x + F.linear(seen.transpose(0, 1).flatten(1), block.attn.proj.weight, block.attn.proj.bias)
        h = F.layer_norm(x, (size,), block.norm2.weight, block.norm2.bias)
        h = F.gelu(F.linear(h, block.mlp.fc1.weight, block.mlp.fc1.bias), approximate="tanh")
        x = x + F.linear(h, block.mlp.fc2.weight, block.mlp.fc2.bias)
    x = F.layer_norm(x, (size,), model.norm_out.weight, model.norm_out.bias)
    logits = x[:-1] @ model.text_out.weight.T
    return F.cross_entropy(logits, tokens[1:], reduction="sum")


@pytest.mark.parametrize("positions", ["sincos", "rope"])
@pytest.mark.parametrize("backend", ["dense", "segments"])
def test_text_alone_is_an_ordinary_language_model(positions, backend):
    """Cross-entropy and gradients of captions of different lengths in one batch; no image takes part."""
    config = replace(MODEL, position_embedding=positions)
    model, text = Transformer(config), shares(text_only=1.0)
    randomise(model)
    batch = batch_of(8, config)
    draws = draws_of(text, 8)
    found, piece = errors_of(model, text, batch, draws, backend)
    assert found.image.shape == (0, 6, 3) and batch.captions is not None
    parameters = dict(model.named_parameters())
    sequences = [[MARKERS.text, *c, MARKERS.text_end, MARKERS.end] for c in batch.captions]
    assert len({len(s) for s in sequences}) > 3
    for row, ids in enumerate(sequences):
        expected = language_model_loss(model, ids)
        assert float(found.text[row].sum()) == pytest.approx(float(expected), rel=1e-5)
        assert int(targets_of(piece)[row].sum()) == len(ids) - 1
    loss = torch.stack([language_model_loss(model, ids) for ids in sequences]).sum()
    wanted = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    grads = torch.autograd.grad(found.text.sum(), list(parameters.values()), allow_unused=True)
    largest = max(float(g.abs().max()) for g in wanted if g is not None)
    for name, ours, naive in zip(parameters, grads, wanted, strict=True):
        if naive is None:
            assert ours is None or not ours.any(), name
        else:
            assert torch.allclose(ours, naive, rtol=1e-4, atol=1e-5 * largest), name


def test_perplexity_of_a_language_model_by_hand():
    """The evaluation of text-only documents: e to the mean cross-entropy of their tokens, no image at all."""
    model = Transformer(MODEL)
    randomise(model)
    config = run_config(shares(text_only=1.0))
    batch = batch_of(8, MODEL)
    result = loss_map(model, PROCESS, config, [batch.slice(slice(4)), batch.slice(slice(4, 8))], MARKERS)
    sequences = [[MARKERS.text, *c, MARKERS.text_end, MARKERS.end] for c in batch.captions or ()]
    total = sum(float(language_model_loss(model, ids).detach()) for ids in sequences)
    mean = total / sum(len(ids) - 1 for ids in sequences)
    assert result.text == {"text_only": pytest.approx(mean, rel=1e-5)} and math.isnan(result.mean)
    record = result.record()
    assert record["perplexity"] == {"text_only": pytest.approx(math.exp(mean), rel=1e-4)}


@pytest.mark.parametrize("num", [3, 5])
def test_the_loss_map_takes_whole_documents(num):
    """Batches of held-out examples that do not fill their last document, or not even one."""
    model = Transformer(replace(MODEL, max_images=2))
    config = run_config(replace(shares(caption_first=0.5, image_first=0.5), examples_per_sequence=2))
    batch = batch_of(num, MODEL)
    parts = [batch.slice(slice(2)), batch.slice(slice(2, num))]
    result = loss_map(model, PROCESS, config, parts, MARKERS)
    rest = parts[1].slice(slice(num - 2 - (num - 2) % 2))
    whole = [parts[0], rest] if len(rest.tokens) else parts[:1]
    # As text: NaN, where there was no token, is not equal to itself.
    assert str(result) == str(loss_map(model, PROCESS, config, whole, MARKERS))
    assert math.isfinite(result.mean)


def test_a_hopeless_text_loss_does_not_stop_the_evaluation():
    model = Transformer(MODEL)
    randomise(model)
    torch.nn.init.normal_(model.text_out.weight, std=1e4, generator=torch.Generator().manual_seed(0))
    result = loss_map(model, PROCESS, run_config(shares(text_only=1.0)), [batch_of(4, MODEL)], MARKERS)
    assert result.text["text_only"] > 1000
    assert result.record()["perplexity"]["text_only"] > 1e40


# --- the loss of a train step ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a red circle"], 261)


def run_config(text: TextConfig, model: dict | None = None, **train: object) -> RunConfig:
    sizes = {"vocab_size": 261, "position_embedding": "rope", **(model or {})}
    values = {"batch_size": 16, "lr": 1e-3, "ema_decay": 0.9, "class_dropout": 0.0, **train}
    return RunConfig(
        model=replace(MODEL, **sizes), text=text, train=TrainConfig(**values),
        codec=CodecConfig(image_height=2, image_width=3, image_channels=3),
        factorization=FactorizationConfig(split="per_image", timesteps_per_ar_step=1),
    )  # fmt: skip


def trainer_of(config: RunConfig, tokenizer: Tokenizer, world: World = ALONE) -> Trainer:
    trainer = Trainer(config, world, tokenizer)
    generator = torch.Generator().manual_seed(1)
    torch.nn.init.normal_(trainer.model.image_out.weight, std=0.1, generator=generator)
    trainer.ema.update(config.train.ema_decay)
    return trainer


MIXED = shares(caption_first=0.3, image_first=0.2, image_only=0.2, text_only=0.3)


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert ours.keys() == reference.keys()
    largest = max(float(g.abs().max()) for g in reference.values())
    for name, grad in reference.items():
        assert torch.allclose(ours[name], grad, rtol=1e-3, atol=2e-6 * largest), name


@pytest.mark.parametrize("text", [MIXED, shares(text_only=1.0), TextConfig(tokenizer="train")],
                         ids=["mixed", "text alone", "default"])  # fmt: skip
@pytest.mark.parametrize("group", [1, 2])
def test_accumulation_changes_nothing(tokenizer, text, group):
    """Micro-batches that differ in their numbers of images and of text tokens give the whole batch's step."""
    results = []
    for pieces in (1, 4):
        options = {"num_class_tokens": 2 if group == 1 else 0, "max_images": 2}
        text = replace(text, examples_per_sequence=group)
        trainer = trainer_of(run_config(text, options, grad_accumulation=pieces), tokenizer)
        result = trainer.step(batch_of(16, trainer.config.model, base=256))
        assert not result.skipped
        results.append((result.loss, trainer.progress.pending_losses[0], gradients(trainer)))
    for ours, reference in zip(results[1][:2], results[0][:2], strict=True):
        assert ours == pytest.approx(reference, rel=1e-5)
    assert_same_gradients(results[1][2], results[0][2])


def expected_losses(trainer: Trainer, batch: TokenBatch) -> tuple[float, float]:
    """By the definitions: the mean over images of the weighted squared error, the mean over text targets."""
    config = trainer.config
    draws = draw(
        config.factorization, config.model, PROCESS, 0.0, seed=config.train.seed, split_index=0,
        sample_indices=batch.sample_indices.tolist(), text=config.text,
    )  # fmt: skip
    assert trainer.objective.markers is not None
    dense = replace(config, train=replace(config.train, attention="dense"))
    objective = Objective(dense, PROCESS, trainer.objective.markers)
    image, text = [], []
    for i in range(len(batch.tokens)):
        piece = objective.arrange(batch.slice(slice(i, i + 1)), draws.slice(slice(i, i + 1)))
        with torch.no_grad():
            found = objective.errors(trainer.model, piece)
        if len(found.image):
            weights = loss_weights(piece.plan.ar_step, config.factorization)
            image.append(float((found.image.mean(-1) * weights).mean()))
        text += found.text[targets_of(piece)].tolist()
    return sum(image) / len(image) if image else 0.0, sum(text) / len(text) if text else 0.0


@pytest.mark.parametrize("text", [MIXED, shares(text_only=1.0), shares(image_only=1.0)],
                         ids=["mixed", "text alone", "images alone"])  # fmt: skip
def test_each_image_and_each_text_token_counts_alike(tokenizer, text):
    """Both losses by their definitions, document by document; the total is their weighted sum."""
    text = replace(text, loss_coefficient=0.37)
    trainer = trainer_of(run_config(text, grad_accumulation=2), tokenizer)
    batch = batch_of(16, trainer.config.model, base=256)
    image, of_text = expected_losses(trainer, batch)
    result = trainer.step(batch)
    reported = trainer.progress.pending_losses[0]
    assert reported == pytest.approx((image, of_text), rel=1e-5)
    assert result.loss == pytest.approx(image + 0.37 * of_text, rel=1e-5)
    assert of_text > 0 and (image > 0) == (text.text_only < 1)


@pytest.mark.parametrize("context", ["clean", "noised"])
def test_a_coefficient_of_zero_leaves_the_text_head_alone(tokenizer, context):
    config = replace(TextConfig(tokenizer="train"), loss_coefficient=0.0, image_context=context)
    base = run_config(TextConfig(tokenizer="train"))
    plan = FactorizationConfig(distribution="fixed") if context == "noised" else base.factorization
    trainer = trainer_of(replace(base, text=config, factorization=plan), tokenizer)
    before = trainer.model.text_out.weight.detach().clone()
    others = trainer.model.text_embedding.weight.detach().clone()
    trainer.step(batch_of(16, trainer.config.model, base=256))
    assert trainer.model.text_out.weight.equal(before)
    assert not trainer.model.text_embedding.weight.equal(others)  # the images see it
    assert trainer.progress.pending_losses[0][1] > 1  # still reported


def test_texts_and_images_share_a_step_that_learns(tokenizer):
    """One batch, again and again: both losses fall."""
    trainer = trainer_of(run_config(MIXED, lr=3e-3), tokenizer)
    batch = batch_of(16, trainer.config.model, base=256, longest=4)
    for _ in range(30):
        trainer.step(batch)
    first, last = trainer.progress.pending_losses[0], trainer.progress.pending_losses[-1]
    assert last[0] < first[0] and last[1] < 0.8 * first[1]


class _OfTwo(World):
    """One of two processes whose other one has nothing to predict."""

    def mean(self, value: Tensor) -> Tensor:
        return value / self.size


def test_a_step_with_less_than_one_image_per_process(tokenizer):
    """The only image of a step counts as it does in one process, though a process has half an image."""
    draws = draw_text(MIXED, seed=0, sample_indices=range(200))
    place = next(i for i, d in enumerate(draws) if d.arrangement == "caption_first")
    config = run_config(MIXED, batch_size=1)
    batch = batch_of(1, config.model, base=256, first=place)
    losses = []
    for world in (ALONE, _OfTwo(0, 2, torch.device("cpu"))):
        trainer = Trainer(config, ALONE, tokenizer)
        trainer.world = world
        trainer.step(batch)
        losses.append(trainer.progress.pending_losses[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_documents_are_not_cut_by_processes_or_micro_batches():
    text = replace(TextConfig(tokenizer="train"), examples_per_sequence=2)
    with pytest.raises(UserError, match=r"text.examples_per_sequence is 2; expected a divisor of the 3"):
        run_config(text, batch_size=6, grad_accumulation=2)
    config = run_config(text, {"num_class_tokens": 0}, batch_size=6)
    with pytest.raises(
        UserError, match=r"batch_size is 6; expected a multiple of 4 \(processes x .*_sequence"
    ):
        open_training_data(config, World(0, 2, torch.device("cpu")))
