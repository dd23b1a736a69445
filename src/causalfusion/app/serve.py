"""`causalfusion app`: a model opened, and its page served until Ctrl-C."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from causalfusion.app.look import CSS, theme
from causalfusion.app.opened import Opened, open_model
from causalfusion.app.page import make_page
from causalfusion.app.pictures import LARGEST_FILE
from causalfusion.app.request import AppRequest
from causalfusion.errors import UserError, brief
from causalfusion.generate.output import say

SESSIONS = 100
"""Pages whose pictures are kept."""
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(request: AppRequest) -> None:
    """Serve the page of the request's model. Raises UserError where that is not possible."""
    page = launch(open_model(request), request)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def launch(opened: Opened, request: AppRequest) -> Any:
    """The page, served by threads of this process. Raises UserError for an address or a port that cannot be
    had."""
    _require_address(request)
    _past_any_proxy(request.host)
    page = make_page(opened)
    try:
        _, local, public = page.launch(
            server_name=request.host,
            server_port=request.port or None,
            share=request.share,
            inbrowser=request.open,
            prevent_thread_lock=True,
            show_error=False,
            quiet=True,
            footer_links=[],
            run_history=False,  # it would keep what was drawn in the browser
            max_file_size=LARGEST_FILE,
            state_session_capacity=SESSIONS,
            enable_monitoring=False,
            ssr_mode=False,
            _frontend=False,  # no look at the page that has to be answered within three seconds
            pwa=False,
            mcp_server=False,
            theme=theme(),
            css=CSS,
        )
    except OSError as error:
        raise _no_address(request, error) from None
    adapters = f" with {', '.join(opened.adapters)}" if opened.adapters else ""
    say(f"{opened.name}{adapters} on {public or local} (Ctrl-C ends it)")
    if request.host not in LOCAL:
        say(f"note: whoever reaches this machine by {request.host} can use the page")
    return page


def _past_any_proxy(host: str) -> None:
    """Let this process reach its own page without the proxy that the environment may name: Gradio asks the
    page whether it has begun."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name, ""), *LOCAL, host]))


def _require_address(request: AppRequest) -> None:
    """Raises UserError for an address that is not this machine's, or a port that is taken there: Gradio looks
    at this machine's own address alone, and tries a hundred ports of another one, for minutes."""
    try:
        found = socket.getaddrinfo(request.host, request.port, type=socket.SOCK_STREAM)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, UnicodeError) as error:
        raise _no_address(request, error) from None


def _no_address(request: AppRequest, error: Exception) -> UserError:
    where = f"{request.host}, port {request.port}" if request.port else request.host
    return UserError(
        f"the page cannot be served on {where} ({brief(error)}); expected an address of this machine, "
        "and a port that is free: choose others with --host and --port"
    )
