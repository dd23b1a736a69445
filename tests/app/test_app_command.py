"""`causalfusion app` without a browser: what it refuses, and what the page of a model has."""

from __future__ import annotations

import importlib.util
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causalfusion.app.opened import Opened
from causalfusion.app.request import AppRequest
from causalfusion.cli import run
from causalfusion.errors import UserError

NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed (the extra `app`)"
)


def labels(page: Any) -> list[str]:
    return [part["props"].get("label") for part in page.config["components"] if part["type"] == "tabitem"]


def test_without_gradio_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, capsys):
    request = AppRequest.__module__  # the command's options, which may have been read already
    for name in [name for name in sys.modules if name.startswith("causalfusion.app.") and name != request]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run(["app"]) == 2
    said = capsys.readouterr().err
    assert "the page needs the package gradio" in said and "pip install 'causalfusion[app]'" in said
    assert said.count("\n") == 1


@NEEDED
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["app", "no/such/model/here"], "no/such/model/here holds no model"),
        (["app", "--port", "70000"], "--port is 70000; expected 1 to 65535"),
        (["app", "--reference", "nothing-here"], "nothing-here does not exist; expected digits, shapes"),
        (["app", "--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_what_is_given_wrong_is_refused_in_one_line(line, words, capsys):
    assert run(line) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@NEEDED
@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid", "x" * 80])
def test_an_address_of_another_machine_is_refused_at_once(shapes: Opened, host: str):
    from causalfusion.app.serve import launch

    begin = time.monotonic()
    with pytest.raises(
        UserError, match=f"cannot be served on {host} .*; expected an address of this machine"
    ):
        launch(shapes, AppRequest(host=host))
    assert time.monotonic() - begin < 60, "Gradio alone takes eight minutes"


@NEEDED
def test_a_port_that_is_taken_is_refused(shapes: Opened):
    from causalfusion.app.serve import launch

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="and a port that is free: choose others with --host and --port"):
            launch(shapes, AppRequest(port=taken.getsockname()[1]))


@NEEDED
def test_neither_a_proxy_nor_a_busy_machine_keeps_the_page_from_being_served(shapes: Opened, monkeypatch):
    from causalfusion.app.serve import launch

    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nothing answers
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)  # as after three seconds
    page = launch(shapes, AppRequest())
    try:
        assert page.is_running
    finally:
        page.close(verbose=False)


@NEEDED
def test_a_page_has_what_its_model_can_do(shapes: Opened, digits: Opened):
    from causalfusion.app.page import make_page

    page = make_page(shapes)
    assert labels(page) == ["Draw", "Change a part", "Describe", "Quality and time"]
    assert labels(make_page(digits)) == ["Draw", "Change a part", "Quality and time"]
    assert page.analytics_enabled is False
    jobs = [job for job in page.fns.values() if job.concurrency_id == "model"]
    assert len(jobs) >= 6 and {job.concurrency_limit for job in jobs} == {1}, "one job at a time"
    ours = [job for job in page.fns.values() if job.name != "load_example"]  # Gradio's own, of examples
    assert len(ours) > 20 and all(job.api_visibility == "private" for job in ours)


@NEEDED
def test_errors_become_one_line_for_the_page_and_nothing_of_the_code(caplog):
    from causalfusion.app.guard import NO_MEMORY, UNEXPECTED, guarded, one_line
    from causalfusion.app.toolkit import gr

    def failing(error: Exception) -> Any:
        @guarded
        def call() -> None:
            raise error

        @guarded
        def generate() -> Any:
            yield 1
            raise error

        with pytest.raises(gr.Error) as called:
            call()
        with pytest.raises(gr.Error) as generated:
            list(generate())
        assert called.value.message == generated.value.message
        return called.value

    shown = failing(UserError("the prompt is '<img onerror=x>'\nand more"))
    assert shown.message == "The prompt is '&lt;img onerror=x&gt;'\\nand more"
    assert shown.print_exception is False
    assert failing(MemoryError()).message == one_line(NO_MEMORY) and not caplog.records
    assert failing(RuntimeError("a secret")).message == one_line(UNEXPECTED)
    assert "a secret" in caplog.text and "Traceback" in caplog.text, "the terminal says what"


@NEEDED
def test_a_page_has_and_names_the_adapters_that_it_is_given(shapes: Opened, make_adapter, tmp_path, capsys):
    from causalfusion.app.opened import open_model
    from causalfusion.app.serve import launch

    adapter = make_adapter(tmp_path / "heart", Path("shapes"))
    request = AppRequest(device="cpu", adapters=[str(adapter)], adapter_weights=[0.5])
    opened = open_model(request)
    weights = [each.pipeline.model.state_dict()["blocks.0.attn.qkv.weight"] for each in (opened, shapes)]
    assert not weights[0].equal(weights[1])
    page = launch(opened, request)
    try:
        (told,) = opened.adapters
        assert told.startswith("heart ") and told.endswith(" x 0.5")
        texts = [part["props"].get("value") for part in page.config["components"]]
        (title,) = [text for text in texts if str(text).startswith("# CausalFusion")]
        assert f"The model `shapes` with `{told}` draws" in title
        assert f"shapes with {told} on http://127.0.0.1:" in capsys.readouterr().out
    finally:
        page.close(verbose=False)
    assert run(["app", "--adapters", str(tmp_path)]) == 2
    assert "holds no adapter" in capsys.readouterr().err


@NEEDED
def test_a_drawing_that_is_stopped_leaves_nothing_to_choose_of_the_one_before():
    from causalfusion.app.frames import Frame
    from causalfusion.app.stage import at_moment, make_stage
    from causalfusion.app.toolkit import gr

    with gr.Blocks():
        stage = make_stage("test", "empty", "Variant")
    frames = [Frame(np.zeros((2, 4, 4, 3), np.uint8), f"step {k}") for k in range(3)]
    first, *_, last = stage.live(iter(frames))
    _, words, _, kept, chosen, more = first
    assert (words, kept, chosen) == ("step 0", None, 0) and not more.visible
    assert all(a is b for a, b in zip(last[3], frames, strict=True)) and last[5].visible
    for html in (first[0], last[0], at_moment(frames, 1, 0, stage.what)[0]):
        assert html.count("Variant 2") == 2 and "Picture" not in html
