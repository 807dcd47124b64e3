"""Renders chat templates with Jinja alone, to the same text as transformers' `apply_chat_template`.

What a template may use is what Hugging Face documents for chat templates: trimmed blocks, `break` and `continue`,
`raise_exception`, `strftime_now`, `tojson` without HTML escapes, and `generation` blocks, which render their content.
Templates come from hubs, so they run in Jinja's sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class _GenerationBlock(Extension):
    """`{% generation %}` marks what the assistant wrote, for those who mask; here its content stands for itself."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PublicNamespace(Namespace):
    """A namespace that takes no underscored attribute: those are Python's own."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace of a chat template cannot hold {name!r}")
        super().__setitem__(name, value)


@cache
def compile_template(source: str) -> Template:
    """The template, compiled once. Raises jinja2.TemplateError where it is none."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise, strftime_now=lambda form: datetime.now().strftime(form), namespace=_PublicNamespace
    )
    return environment.from_string(source)


def render_template(
    source: str, turns: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str], **variables: Any
) -> str:
    """The conversation as text.

    Args:
        source: A Jinja template.
        turns: `role` and `content` of each.
        special_tokens: By their names (`bos_token`), which are variables of the template.
        variables: Further ones, such as `add_generation_prompt`.

    Raises:
        jinja2.TemplateError: If it cannot be compiled or rendered, or itself raises an error.
    """
    known = {**special_tokens, "tools": None, "documents": None, **variables}
    return compile_template(source).render(messages=[dict(turn) for turn in turns], **known)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
