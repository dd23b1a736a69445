"""Chat templates: the messages of a conversation as one text, by the Jinja template that comes with a
language model's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from causalfusion.errors import UserError, brief

Message = Mapping[str, str]
"""`role` (system, user or assistant) and `content`."""


def render_chat(template: str, messages: Sequence[Message], special_tokens: Mapping[str, str]) -> str:
    """The text that the model is to go on with as its assistant. The template runs in a sandbox that changes
    nothing. Raises UserError for one that cannot be rendered, or refuses the messages."""
    try:
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UserError("chat templates need the package jinja2; install it: pip install jinja2") from None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tags(), jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=True, tools=None, documents=None, **special_tokens
        )
    except jinja2.TemplateError as error:
        raise UserError(f"the model's chat template does not take these messages: {error}") from None
    except Exception as error:  # it is a program, of whoever made the model, and can fail in any way
        raise UserError(f"the model's chat template fails on these messages: {brief(error)}") from None


def _generation_tags() -> type:
    """An extension that knows the tags {% generation %}, with which templates mark answers for training."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (as Jinja wants it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter escapes what HTML does not allow."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
