"""Where images come into being: tiles, a line of words, and a slider that goes back through the moments."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from causalfusion.app.frames import Frame
from causalfusion.app.guard import guarded
from causalfusion.app.look import CHOOSE_TILE
from causalfusion.app.tiles import placeholder, tiles
from causalfusion.app.toolkit import gr

SECONDS_OF_REPLAY = 4.0
SHORTEST_PAUSE = 0.06
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""For events that are the page's own business."""
QUICK: dict[str, Any] = {**PRIVATE, "queue": False, "show_progress": "hidden"}
"""For events that need no model and cannot fail: the page shows errors of queued events only."""
LIGHT: dict[str, Any] = {**PRIVATE, "concurrency_limit": None, "show_progress": "hidden"}
"""For events that need no model."""
HEAVY: dict[str, Any] = {**PRIVATE, "concurrency_id": "model", "concurrency_limit": 1}
"""For the model's jobs: one at a time, whoever asks."""


@dataclass(frozen=True)
class Stage:
    """The components, and what a session keeps of the images on them."""

    picture: Any
    words: Any
    slider: Any
    frames: Any
    """State: the frames that the slider goes through."""
    chosen: Any
    """State: the index of the chosen image."""
    more: Any
    """A column of what is of use once there are images, hidden until then."""
    what: str = "Picture"
    """What an image is called."""

    @property
    def components(self) -> list[Any]:
        return [self.picture, self.words, self.slider, self.frames, self.chosen, self.more]

    def live(self, frames: Iterator[Frame]) -> Iterator[list[Any]]:
        """The values of `components` while frames come, and at their end."""
        kept: list[Frame] = []
        for frame in frames:
            # What was kept goes with the images that it is of: these here may be stopped before their end.
            others = [gr.skip()] * 3 if kept else [None, 0, gr.Column(visible=False)]
            kept.append(frame)
            yield [shown(frame, self.what), frame.words, gr.skip(), *others]
        slider = gr.Slider(maximum=max(2, len(kept)), value=len(kept), interactive=len(kept) > 1)
        html = shown(kept[-1], self.what, chosen=0)
        yield [html, kept[-1].words, slider, kept, 0, gr.Column(visible=True)]


def make_stage(name: str, empty: str, what: str = "Picture") -> Stage:
    """Components with their events. `name` begins the ids of the elements, `what` is an image's label."""
    picture = gr.HTML(
        placeholder(empty), js_on_load=CHOOSE_TILE, elem_id=f"{name}-stage", elem_classes="cf-stage"
    )
    words = gr.Markdown("", elem_classes="cf-words", elem_id=f"{name}-words")
    with gr.Column(visible=False) as more, gr.Row(equal_height=True):
        slider = gr.Slider(
            1, 2, 2, step=1, label="How it came into being", interactive=False, scale=5, min_width=160,
            elem_id=f"{name}-moment", buttons=[],
        )  # fmt: skip
        play = gr.Button("Replay", size="sm", scale=1, min_width=80, elem_id=f"{name}-replay")
    stage = Stage(picture, words, slider, gr.State(None), gr.State(0), more, what)
    seen = [stage.picture, stage.words]

    @guarded
    def go_to(moment: float, frames: list[Frame] | None, chosen: int) -> list[Any]:
        return at_moment(frames, int(moment), chosen, what)

    @guarded
    def choose(frames: list[Frame] | None, chosen: int, event: gr.EventData) -> list[Any]:
        if not frames:
            return [gr.skip(), 0]
        index = min(int(getattr(event, "index", chosen)), len(frames[-1].pixels) - 1)
        return [shown(frames[-1], what, chosen=index), index]

    @guarded
    def replay(frames: list[Frame] | None, chosen: int) -> Iterator[list[Any]]:
        for moment in range(1, len(frames or ()) + 1):
            yield [*at_moment(frames, moment, chosen, what), moment]
            time.sleep(max(SHORTEST_PAUSE, SECONDS_OF_REPLAY / len(frames or [0]) / 2))

    slider.input(go_to, [slider, stage.frames, stage.chosen], seen, trigger_mode="always_last", **QUICK)
    picture.click(choose, [stage.frames, stage.chosen], [picture, stage.chosen], **QUICK)
    play.click(
        replay, [stage.frames, stage.chosen], [*seen, slider], concurrency_limit=None,
        show_progress="hidden", **PRIVATE,
    )  # fmt: skip
    return stage


def shown(frame: Frame, what: str, chosen: int | None = None) -> str:
    """The tiles of a frame, each called what it is."""
    return tiles(frame, labels=[f"{what} {k + 1}" for k in range(len(frame.pixels))], chosen=chosen)


def at_moment(frames: Sequence[Frame] | None, moment: int, chosen: int, what: str) -> list[Any]:
    """(tiles, words) of a moment, counted from 1."""
    if not frames:
        return [gr.skip(), gr.skip()]
    frame = frames[min(max(moment, 1), len(frames)) - 1]
    last = moment >= len(frames)
    return [shown(frame, what, chosen if last else None), frame.words]


def chosen_picture(frames: Sequence[Frame] | None, chosen: int) -> Any:
    """(H, W, C) uint8 of the chosen image; None where there is none."""
    if not frames:
        return None
    pixels = frames[-1].pixels
    return pixels[min(chosen, len(pixels) - 1)]
