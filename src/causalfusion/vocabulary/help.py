"""Help that fits a screen or two: the settings that most users look for; all of them with --help-all."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from causalfusion.config import SampleConfig

if TYPE_CHECKING:
    from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

EVERYTHING = "--help-all"
_MAIN = {
    "data": "source path image-size captions flip holdout num-workers",
    "codec": "autoencoder patch-size",
    "model": "hidden-size depth num-heads num-class-tokens",
    "diffusion": "path prediction-type",
    "factorization": "decay",
    "text": "tokenizer",
    "align": "encoder",
    "train": "seed init images epochs minutes batch-size micro-batch optimizer lr precision parallel log-to",
}
OF_TABLES = frozenset(f"--{table}.{name}" for table, names in _MAIN.items() for name in names.split())
OF_SAMPLING = frozenset(
    {"--num-ar-steps", "--diffusion-steps", "--sampler", "--guidance-scale", "--order", "--temperature"}
)
_FINE = frozenset(f"--{field.name.replace('_', '-')}" for field in fields(SampleConfig)) - OF_SAMPLING
_FINE |= {"--rope-extrapolation"}


def default_in_help(value: Any) -> Any:
    """A default value as one types it; None, which help does not show, for an empty one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or None
    return None if value in (None, "") else str(value)


def is_main(name: str) -> bool:
    """True for an option that the short help shows: of a table only a few, and few of sampling."""
    return name in OF_TABLES if "." in name else name not in _FINE


class Help:
    """cyclopts' own look, of the settings that are to be shown."""

    everything = False
    command = ""
    """The one that is asked about."""

    @cached_property
    def _look(self) -> DefaultFormatter:
        from cyclopts.help import DefaultFormatter  # which no command needs

        return DefaultFormatter()

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        kept = [entry for entry in panel.entries if self.everything or _is_shown(entry)]
        left_out = len(panel.entries) - len(kept)
        self._look(console, options, panel.copy(entries=kept))
        if left_out:
            console.print(f"{left_out} finer settings: causalfusion {self.command} {EVERYTHING}\n")

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        self._look.render_usage(console, options, usage)

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        self._look.render_description(console, options, description)


def _is_shown(entry: HelpEntry) -> bool:
    return not entry.names or any(map(is_main, entry.names))
