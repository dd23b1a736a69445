"""Errors on the page: what a user gave wrong in one line, anything else in the terminal alone."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, TypeVar

from causalfusion.app.toolkit import gr
from causalfusion.errors import UserError, printable

UNEXPECTED = "something went wrong here; the terminal in which the page was started says what"
NO_MEMORY = "there is not enough memory for this; ask for fewer or smaller pictures"
_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def on_the_page() -> Iterator[None]:
    """Raises Gradio's error, which the page shows, for every error but those that are Gradio's own."""
    try:
        yield
    except gr.Error:
        raise
    except UserError as error:
        raise _shown(str(error)) from None
    except Exception as error:
        words = ("not enough memory", "can't allocate memory", "out of memory")
        if isinstance(error, MemoryError) or any(word in str(error) for word in words):
            raise _shown(NO_MEMORY) from None
        _log.exception("a job of the page failed")
        raise _shown(UNEXPECTED) from None


def guarded(function: F) -> F:
    """The function, or the generator function, with its errors as the page shows them."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Any:
            with on_the_page():
                yield from function(*args, **kwargs)

        return generate  # type: ignore[return-value]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with on_the_page():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def one_line(message: str) -> str:
    """A message as the page's HTML, which shows it as it is: it may hold what a user typed."""
    text = escape(printable(message), quote=False)
    return text[:1].upper() + text[1:]


def _shown(message: str) -> Exception:
    return gr.Error(one_line(message), title="That did not work", print_exception=False)
