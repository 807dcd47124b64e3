"""Write docs/configuration.md from the docstrings of config.py, so that the two cannot differ.

python tools/write_config_docs.py [--check]
"""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from semievol import config as config_module
from semievol.columns import USUAL_NAMES
from semievol.config import DEFAULT_BACKENDS, RECIPES, RunConfig
from semievol.prompts import INSTRUCTIONS, JUSTIFY_TEMPLATES, PROMPT_TEMPLATES

PATH = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"


def main() -> int:
    """Write the file, or with --check say whether it is current."""
    text = render()
    if "--check" in sys.argv:
        current = PATH.exists() and PATH.read_text(encoding="utf-8") == text
        print("docs/configuration.md is current" if current else "run: python tools/write_config_docs.py")
        return 0 if current else 1
    PATH.write_text(text, encoding="utf-8")
    return 0


def render() -> str:
    """The whole document."""
    parts = [HEAD, *recipe_table(), "## Keys\n", *sections(RunConfig, "")]
    parts += ["## Columns found without configuration\n", *column_table(), "## Default prompts\n", *prompt_blocks()]
    return "\n".join(parts).rstrip() + "\n"


HEAD = """\
# Configuration

Every key of a config file, written from `src/semievol/config.py` by `tools/write_config_docs.py`.
Keys are set in YAML or on the command line: `semievol run config.yaml select.keep_fraction=0.3`.
An unknown key stops the run and names the nearest one.

## Recipes

`recipe: paper` does what the paper says (arXiv:2410.14745 v2, Eq. 7 and 9), `recipe: released` what the authors' code
does, with our parser and our seeds. A recipe fills the keys below; any of them can still be set, and the report prints
what differs. All other keys have one default for both.
"""


def recipe_table() -> Iterator[str]:
    """One row a key that recipes fill."""
    yield "| key | paper | released |\n| --- | --- | --- |"
    for key in RECIPES["paper"]:
        yield f"| `{key}` | {_value(RECIPES['paper'][key])} | {_value(RECIPES['released'][key])} |"
    yield ""


def sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The keys of a section, then the sections below it."""
    yield "| key | type | default | |\n| --- | --- | --- | --- |"
    below: list[tuple[str, type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        members = [m for m in config_module._models_in(field.annotation) if m is not config_module.ConfigurationConfig]
        if name == "inner":
            tags = " or ".join(f"`type: {m.model_fields['type'].default}`" for m in members)
            yield f"| `{prefix}{name}` | section of {tags} | `transformers` | {_cell(field.description)} |"
            continue
        if members:
            below += [(f"{prefix}{name}", m, field.description or "") for m in members]
            continue
        key = f"{prefix}{name}"
        default = _default(key, field)
        yield f"| `{key}` | {_type(field.annotation)} | {default} | {_cell(field.description)} |"
    yield ""
    for name, member, _ in below:
        tag = member.model_fields["type"].default if name in ("generator", "trainer", "embedder") else None
        title = f"`{name}` of `type: {tag}`" if tag else f"`{name}`"
        default = " (default)" if tag and DEFAULT_BACKENDS[f"{name}.type"] == tag else ""
        yield f"### {title}{default}\n\n{inspect.cleandoc(member.__doc__ or '')}\n"
        yield from sections(member, f"{name}.")


def column_table() -> Iterator[str]:
    """The usual names of columns."""
    yield "| field | column names, the first one found counts |\n| --- | --- |"
    for field, names in USUAL_NAMES.items():
        yield f"| {field} | {', '.join(f'`{n}`' for n in names)} |"
    yield ""


def prompt_blocks() -> Iterator[str]:
    """Instructions and templates by answer type; equal ones once."""
    for kind, instruction in INSTRUCTIONS.items():
        yield f"- `{kind}` instruction: {instruction or '(none)'}"
    yield ""
    for title, templates in (("prompt_template", PROMPT_TEMPLATES), ("justify_template", JUSTIFY_TEMPLATES)):
        by_text: dict[str, list[str]] = {}
        for kind, text in templates.items():
            by_text.setdefault(text, []).append(kind)
        for text, kinds in by_text.items():
            yield f"`task.{title}` for {', '.join(kinds)}:\n\n```jinja\n{text.strip()}\n```\n"


def _type(annotation: Any) -> str:
    text = str(annotation) if not isinstance(annotation, type) else annotation.__name__
    for old, new in (
        ("typing.", ""),
        ("semievol.config.", ""),
        ("ConfigurationConfig", "{model, k}"),
        ("NoneType", "None"),
    ):
        text = text.replace(old, new)
    if text.startswith("Literal[") or "Literal[" in text:
        for old in ("Union[", "Optional[", "Literal[", "]", "'"):
            text = text.replace(old, "")
        return " or ".join(f"`{p.strip()}`" for part in text.split("|") for p in part.split(","))
    return text.replace("|", "or")


def _default(key: str, field: FieldInfo) -> str:
    if key in RECIPES["paper"]:
        return "recipe"
    default = field.get_default(call_default_factory=True, validated_data={})
    return "required" if default is PydanticUndefined else _value(default)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        return ", ".join(f"{{model: {v['model']}, k: {v['k']}}}" for v in value)
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"`{json.dumps(value)}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())


if __name__ == "__main__":
    sys.exit(main())
