"""The options of the command `app`."""

from __future__ import annotations

from dataclasses import dataclass

from causalfusion.app.asked import LAST_SEED
from causalfusion.config.options import DEFAULT_MODEL, GeneratingOptions, Model
from causalfusion.errors import UserError, check


@dataclass(frozen=True, kw_only=True)
class AppRequest(GeneratingOptions):
    model: Model = DEFAULT_MODEL
    host: str = "127.0.0.1"
    """Address that the page is served on. The default is this machine's own, which no other can reach;
    0.0.0.0: all of its addresses."""
    port: int = 0
    """Default: the first free one from 7860."""
    share: bool = False
    """Serve the page on a public address of Gradio's, for a week, for everyone who knows it."""
    open: bool = False
    """Open the page in the browser."""
    reference: str = ""
    """Real images that quality is measured against, as for plan: digits, shapes:test, a folder, shards, an
    .npz file. Default: those of the model's training, where they are known."""

    def __post_init__(self) -> None:
        check(0 <= self.seed <= LAST_SEED, "--seed", self.seed, f"0 to {LAST_SEED}")
        if not 0 <= self.port <= 65_535:
            raise UserError(f"--port is {self.port}; expected 1 to 65535, or 0 for the first free one")
