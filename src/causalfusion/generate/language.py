"""Text from a language model, also one that learned to draw: logits, continuations and answers, one token
after another against the cache.

Shape letters: B rows, n tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from causalfusion.codec.chat import Message
from causalfusion.codec.language_tokenizer import (
    GENERATION_FILE,
    LANGUAGE_FOLDER,
    LanguageTokenizer,
    open_language_tokenizer,
)
from causalfusion.config import WriteConfig
from causalfusion.config.serialize import read_object
from causalfusion.errors import UserError
from causalfusion.factorization import UNSEEN
from causalfusion.generate.write import TokenWatcher, draw_texts
from causalfusion.machine.runtime import autocast, available_memory
from causalfusion.model.kv_cache import KVCache
from causalfusion.model.text_rotation import text_frequencies
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import ModelSpec, WeightsName, load_model, load_spec, read_latest
from causalfusion.sequence import PackedSequence, text_segment
from causalfusion.weight_files import read_shapes

Ids = Sequence[int]


@dataclass(frozen=True)
class LanguagePipeline:
    """A language model and its tokenizer."""

    model: Transformer
    spec: ModelSpec
    tokenizer: LanguageTokenizer
    end_ids: frozenset[int] = frozenset()
    """Tokens that end a text."""
    autocast_dtype: torch.dtype = torch.float32
    """bfloat16 to compute in it."""

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        weights: WeightsName = "ema",
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype = torch.float32,
    ) -> LanguagePipeline:
        """From a model folder that `causalfusion convert llm` made, or a run that goes on from one:

        pipeline = LanguagePipeline.load("models/smollm2")
        pipeline.complete(["The capital of France is"])

        Raises UserError, also where its weights do not fit into memory.
        """

        def read(place: Path) -> tuple[Transformer, ModelSpec]:
            _require_memory(place)
            return load_model(place, weights, device)

        (model, spec), place = read_latest(Path(folder), read)
        if not spec.model.speaks:
            raise UserError(f"{place} did not begin as a language model; use Pipeline")
        vocabulary, known = spec.model.text_vocab_size, spec.tokenizer_fingerprint
        tokenizer = open_language_tokenizer(place, vocabulary, known)
        ends = frozenset(read_ends(place / LANGUAGE_FOLDER, tokenizer))
        return cls(model, spec, tokenizer, ends, autocast_dtype)

    @property
    def device(self) -> torch.device:
        return self.model.text_embedding.weight.device

    @torch.no_grad()
    def logits(self, rows: Sequence[Ids]) -> list[Tensor]:
        """(n, V) float32 logits of what follows each token, for each row of ids."""
        with autocast(self.device, self.autocast_dtype):
            (hidden,) = self.model.hidden(packed_text(rows, self.device))
            found = language_logits(self.model, hidden)
        return [found[row, : len(ids)] for row, ids in enumerate(rows)]

    def complete(
        self,
        prompts: Sequence[str],
        config: WriteConfig | None = None,
        *,
        seed: int = 0,
        row_indices: Sequence[int] | None = None,
        watch: TokenWatcher | None = None,
    ) -> list[str]:
        """The text that follows each prompt, up to a token that ends it. Text i depends on (seed,
        row_indices[i]) and prompt i alone; `row_indices` defaults to 0, 1, ..."""
        rows = [self.tokenizer.encode(prompt) for prompt in prompts]
        texts = self.write(rows, config, seed=seed, row_indices=row_indices, watch=watch)
        return [self.tokenizer.decode(ids) for ids in texts]

    def chat(
        self,
        messages: Sequence[Message],
        config: WriteConfig | None = None,
        *,
        seed: int = 0,
        watch: TokenWatcher | None = None,
    ) -> str:
        """The answer to a conversation, by the model's chat template."""
        (ids,) = self.write([self.tokenizer.encode_chat(messages)], config, seed=seed, watch=watch)
        return self.tokenizer.decode(ids)

    @torch.no_grad()
    def write(
        self,
        rows: Sequence[Ids],
        config: WriteConfig | None = None,
        *,
        seed: int = 0,
        row_indices: Sequence[int] | None = None,
        watch: TokenWatcher | None = None,
    ) -> list[list[int]]:
        """The ids that follow rows of ids, of any lengths, without the token that ends them. Raises UserError
        for a row that is empty, or for which the model has no room."""
        config = config or WriteConfig()
        if not rows:
            return []
        room = _text_places(self.model)
        for ids in rows:
            if not 0 < len(ids) < room:
                raise UserError(f"the text has {len(ids):,} tokens; expected 1 to {room - 1:,}")
        indices = range(len(rows)) if row_indices is None else row_indices
        limits = [min(config.max_tokens, room - len(ids)) for ids in rows]
        with autocast(self.device, self.autocast_dtype):
            text = GrowingText(self.model, rows, max(limits), self.device)

            def append(chosen: Tensor, _: int) -> Tensor:
                text.append(chosen)
                return text.logits

            return draw_texts(
                text.logits,
                append,
                limits,
                self.end_ids,
                config,
                seed=seed,
                row_indices=indices,
                watch=watch,
            )


def _text_places(model: Transformer) -> int:
    """Places of the longest text alone."""
    return model.config.language.longest or model.config.max_text_tokens


def packed_text(rows: Sequence[Ids], device: torch.device) -> PackedSequence:
    """Rows of ids of any lengths, the shorter ones padded with tokens that no other sees."""
    lengths = torch.tensor([len(ids) for ids in rows])
    longest = int(lengths.max())
    filled = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rows])
    index = torch.arange(longest)[None]
    if bool((lengths == longest).all()):
        return _text(filled, index + 1, index, device)
    inside = index < lengths[:, None]
    # Padding has a place of its row, so that it does not lengthen it.
    return _text(filled, torch.where(inside, index + 1, UNSEEN), torch.where(inside, index, 0), device)


def _text(ids: Tensor, ar_step: Tensor, places: Tensor, device: torch.device) -> PackedSequence:
    return PackedSequence((text_segment(ids.to(device), ar_step.to(device), places.to(device)),))


class GrowingText:
    """Rows of text in the cache, and the logits (B, V) of what follows them."""

    def __init__(self, model: Transformer, rows: Sequence[Ids], room: int, device: torch.device) -> None:
        """`room`: tokens that will be appended at most."""
        self.model, self.device = model, device
        self.rows = [list(ids) for ids in rows]
        self.capacity = max(map(len, rows)) + room
        self.lengths = torch.tensor([len(ids) for ids in rows])
        self._begin()

    def _begin(self) -> None:
        sequence = packed_text(self.rows, self.device)
        dtype = torch.float32
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)
        self.cache = KVCache.allocate(
            self.model.config, len(self.rows), self.capacity, device=self.device, dtype=dtype
        )
        (hidden,) = self.model.hidden(sequence, self.cache.attend(sequence))
        self.cache.commit(sequence)
        last = hidden[torch.arange(len(self.rows)), self.lengths - 1]
        self.logits = language_logits(self.model, last)

    def append(self, tokens: Tensor) -> None:
        """Go on with one more token (B,) of every row."""
        for ids, token in zip(self.rows, tokens.tolist(), strict=True):
            ids.append(token)
        places, self.lengths = self.lengths, self.lengths + 1
        if self._turns_differently(places):
            self._begin()
            return
        step = torch.tensor([[self.cache.length + 1]])
        # A row that is done may have no places left; nothing reads what is computed for it.
        places = places.clamp(max=_text_places(self.model) - 1)
        sequence = _text(tokens[:, None], step, places[:, None], self.device)
        (hidden,) = self.model.hidden(sequence, self.cache.attend(sequence))
        self.cache.commit(sequence)
        self.logits = language_logits(self.model, hidden[:, 0])

    def _turns_differently(self, before: Tensor) -> bool:
        """True if the rotary frequencies change with the new lengths, and with them all cached keys."""
        config = self.model.config
        if not config.language.scaling.depends_on_length:
            return False
        old, new = (text_frequencies(config.language, config.head_dim, n) for n in (before, self.lengths))
        return not old.equal(new)


def read_ends(folder: Path, tokenizer: LanguageTokenizer) -> list[int]:
    """Ids that end a text, from generation_config.json, config.json, or the tokenizer's end token."""
    for name in (GENERATION_FILE, "config.json"):
        if (folder / name).is_file():
            ends = read_object(folder / name, "language model").get("eos_token_id")
            ends = ends if isinstance(ends, list) else [ends]
            found = [end for end in ends if isinstance(end, int)]
            if found:
                return found
    end = tokenizer.id_of(tokenizer.special_tokens.get("eos_token", ""))
    return [] if end is None else [end]


def language_logits(model: Transformer, hidden: Tensor) -> Tensor:
    """(..., V) logits of what follows text tokens in the language model's own vocabulary, without markers."""
    return model.text_logits(hidden)[..., : model.config.text_vocab_size]


def is_language_model(model: Path, *, draws_too: bool = False) -> bool:
    """True if a model folder, a run or a packaged model is of text alone; with `draws_too`, also if it was
    so before it learned to draw. Raises UserError."""
    config = read_latest(model, load_spec)[0].model
    return config.text_only or (draws_too and config.speaks)


def _require_memory(folder: Path) -> None:
    if not (folder / "model.safetensors").is_file():
        return
    shapes = read_shapes(folder / "model.safetensors")
    needed, free = 4 * sum(torch.Size(shape).numel() for shape in shapes.values()), available_memory()
    if needed > free:
        raise UserError(
            f"{folder} takes {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; end other "
            "programs, or use a larger machine"
        )
