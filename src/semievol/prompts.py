"""The chat prompts: answer, answer with demonstrations, justify; and the text a model is trained to give.

One builder makes the prompts of training and of inference, so they cannot differ. Templates are Jinja, sandboxed,
and come from the config or from the defaults below. What they may use:

    instruction     the task's instruction or ""
    question, context
    options         [{letter, text}, ...] of a choice row, else []
    labels          the fixed set of a label task, else []
    shared_options  true where all rows of a choice task have the same options: they are then listed once, at the top,
                    so that every prompt of the run begins with the same tokens
    demonstrations  [{question, context, options, answer}, ...], least similar first: the nearest stands next to
                    the question
    answers         (justify only) the answers proposed, in the order of the configurations; unparsable ones left out
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from semievol.config import TaskConfig
from semievol.errors import ConfigError
from semievol.types import Example, Message, TaskFacts, choice_letter

INSTRUCTIONS = {
    "choice": 'Choose the right option. Reply with "Answer: " and its letter.',
    "label": 'Choose the label that fits. Reply with "Answer: " and the label.',
    "number": 'Solve the problem. Reply with "Answer: " and a number.',
    "span": 'Answer the question in a few words. Reply with "Answer: " and those words.',
    "text": "",
}

_BLOCK = """\
{%- macro block(row) -%}
{% if row.context %}Context: {{ row.context }}
{% endif %}Question: {{ row.question }}
{%- if not shared_options %}{% for option in row.options %}
{{ option.letter }}. {{ option.text }}{% endfor %}{% endif %}
{%- endmacro -%}
{% if instruction %}{{ instruction }}

{% endif %}{% if labels %}Labels: {{ labels | join(", ") }}

{% endif %}{% if shared_options %}Options:
{% for option in options %}{{ option.letter }}. {{ option.text }}
{% endfor %}
{% endif %}{% for row in demonstrations %}{{ block(row) }}
Answer: {{ row.answer }}

{% endfor %}{{ block(row) }}"""

_TEXT = """\
{% if instruction %}{{ instruction }}

{% endif %}{% for row in demonstrations %}{% if row.context %}{{ row.context }}

{% endif %}{{ row.question }}

{{ row.answer }}

{% endfor %}{% if row.context %}{{ row.context }}

{% endif %}{{ row.question }}"""

_JUSTIFY = """

Proposed answers: {{ answers | join("; ") }}
Decide which answer is right."""

_JUSTIFY_TEXT = """

Proposed answers:
{% for answer in answers %}{{ loop.index }}. {{ answer }}
{% endfor %}
Give the right answer."""

PROMPT_TEMPLATES = {"choice": _BLOCK, "label": _BLOCK, "number": _BLOCK, "span": _BLOCK, "text": _TEXT}
JUSTIFY_TEMPLATES = {
    "choice": _BLOCK + _JUSTIFY,
    "label": _BLOCK + _JUSTIFY,
    "number": _BLOCK + _JUSTIFY,
    "span": _BLOCK + _JUSTIFY,
    "text": _TEXT + _JUSTIFY_TEXT,
}
COMPLETION_TEMPLATES = dict.fromkeys(("choice", "label", "number", "span"), "Answer: {{ answer }}") | {
    "text": "{{ answer }}"
}


class PromptBuilder:
    """Renders chat turns for one task. Building one checks all templates.

    Raises:
        ConfigError: If a template of the config does not parse, or uses a name that it is not given.
    """

    def __init__(self, task: TaskConfig, facts: TaskFacts) -> None:
        self.task = task
        self.facts = facts
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        self._prompt = _compile(
            environment, "task.prompt_template", task.prompt_template or PROMPT_TEMPLATES[task.type]
        )
        self._justify = _compile(
            environment, "task.justify_template", task.justify_template or JUSTIFY_TEMPLATES[task.type]
        )
        completion = task.completion_template or COMPLETION_TEMPLATES[task.type]
        self._completion = _compile(environment, "task.completion_template", completion)
        self._reads_row = bool(meta.find_undeclared_variables(environment.parse(completion)) - {"answer"})
        self._completions: dict[str, str] = {}
        """By answer, where the template looks at nothing else of a row and the answers are a closed set."""

    @cached_property
    def instruction(self) -> str:
        """The first line of every prompt, or an empty string."""
        return INSTRUCTIONS[self.task.type] if self.task.instruction is None else self.task.instruction

    def answer(self, example: Example, demonstrations: Sequence[Example] = ()) -> tuple[Message, ...]:
        """The turns that ask for the answer to `example`; `demonstrations` nearest first, each with a target."""
        return self._turns(
            example, _render(self._prompt, "task.prompt_template", self._values(example, demonstrations))
        )

    def justify(self, example: Example, answers: Sequence[str]) -> tuple[Message, ...]:
        """The turns that show the proposed answers and ask for the final one."""
        values = self._values(example, ()) | {"answers": list(answers)}
        return self._turns(example, _render(self._justify, "task.justify_template", values))

    def completion(self, answer: str, example: Example) -> str:
        """The text that a model is trained to give for `answer`."""
        if self._reads_row or self.task.type not in ("choice", "label"):
            return self._render_completion(answer, example)
        if answer not in self._completions:
            self._completions[answer] = self._render_completion(answer, example)
        return self._completions[answer]

    def _render_completion(self, answer: str, example: Example) -> str:
        values = _row_values(example) | {"answer": answer}
        return _render(self._completion, "task.completion_template", values)

    def _turns(self, example: Example, user: str) -> tuple[Message, ...]:
        system = () if self.task.system is None else (Message("system", self.task.system),)
        return (*system, *example.history, Message("user", user))

    def _values(self, example: Example, demonstrations: Sequence[Example]) -> dict[str, Any]:
        row = _row_values(example)
        return {
            **row,
            "row": row,
            "instruction": self.instruction,
            "labels": list(self.facts.labels),
            "shared_options": bool(self.facts.shared_choices),
            "demonstrations": [_row_values(d) | {"answer": d.target} for d in reversed(demonstrations)],
        }


def _row_values(example: Example) -> dict[str, Any]:
    return {
        "question": example.question,
        "context": example.context or "",
        "options": _options(example.choices),
    }


@lru_cache(maxsize=1024)
def _options(choices: tuple[str, ...]) -> list[dict[str, str]]:
    """Shared between rows: templates are sandboxed and cannot change it."""
    return [{"letter": choice_letter(i), "text": text} for i, text in enumerate(choices)]


def _compile(environment: ImmutableSandboxedEnvironment, key: str, source: str) -> Template:
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ConfigError(f"{key}: not a valid Jinja template: {error}") from error


def _render(template: Template, key: str, values: dict[str, Any]) -> str:
    try:
        return template.render(values).strip()
    except TemplateError as error:
        raise ConfigError(f"{key}: {error}; it may use {', '.join(sorted(values))}") from error
