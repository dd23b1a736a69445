"""Runs of tests without what takes seconds and is tested by itself."""

from __future__ import annotations

import pytest
from PIL import Image

_DOT = Image.new("RGB", (1, 1))


def quicken(patch: pytest.MonkeyPatch) -> None:
    """The chart of each evaluation is a small picture, the machine's arithmetic is not measured, and a
    tokenizer is made from few captions."""
    patch.setattr("causalfusion.train.reports.save_loss_map", lambda _, out: _DOT.save(out))
    patch.setattr("causalfusion.train.reports.peak_rate", lambda *_: 1e9)
    for module in ("from_data", "document_feed"):
        patch.setattr(f"causalfusion.train.{module}.TOKENIZER_IMAGES", 500)
