"""Guidance leads away from "no class" and from no text: said where training never had them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest

from causalfusion.config import SampleConfig
from causalfusion.generate.output import warn_of_untrained_null
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.progress import seconds_of_command

GUIDED, PLAIN = SampleConfig(guidance_scale=2.0), SampleConfig()
NO_CLASS = 3


def said(pipeline: Pipeline, settings: SampleConfig, labels: list[int], class_dropout, caption_dropout=0.1):
    text = replace(pipeline.spec.text, caption_dropout=caption_dropout)
    changed = replace(pipeline, spec=replace(pipeline.spec, class_dropout=class_dropout, text=text))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_untrained_null(changed, settings, labels)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("class_dropout", [0.1, None, 0.0])
@pytest.mark.parametrize("settings", [GUIDED, PLAIN])
@pytest.mark.parametrize("labels", [[0, 1], [NO_CLASS]])
def test_a_class_that_was_never_left_out(models, class_dropout, settings, labels):
    messages = said(Pipeline.load(models["classes"]), settings, labels, class_dropout)
    if class_dropout != 0:
        assert messages == [], "trained, or not known"
    elif labels == [NO_CLASS]:
        assert len(messages) == 1 and "never saw an image without a class" in messages[0]
    else:
        assert len(messages) == (settings is GUIDED)
        assert all("trained with train.class_dropout 0" in message for message in messages)


def test_a_caption_that_was_never_left_out(models):
    pipeline = Pipeline.load(models["text"])
    (message,) = said(pipeline, GUIDED, [NO_CLASS], None, 0.0)
    assert "trained with text.caption_dropout 0" in message
    assert said(pipeline, PLAIN, [NO_CLASS], 0.0, 0.0) == [], "it has no class, and nothing guides"
    assert said(pipeline, GUIDED, [NO_CLASS], 0.0, 0.1) == []


def test_seconds_count_from_the_start_of_the_command(tmp_path):
    """Not from where a part of it begins to count; in other processes, such as this one, from there."""
    assert seconds_of_command(0.5) == 0.5
    script = tmp_path / "causalfusion"
    script.write_text(
        "import time; time.sleep(0.3)\n"
        "from causalfusion.machine.progress import seconds_of_command as s\nprint(s(0.01), s(1e6))\n"
    )
    said = subprocess.run(
        [sys.executable, script], env=os.environ, capture_output=True, text=True, check=True
    ).stdout
    first, second = map(float, said.split())
    assert first >= 0.28 or not os.path.exists("/proc/self/stat")
    assert first < 60 and second == 1e6
