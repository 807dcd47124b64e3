"""Reads an answer out of text, writes it in a normal form and scores it, for each answer type of the task.

Wide in what it reads and strict in what it accepts: the last answer statement wins, and what stays ambiguous is None,
which callers count and never take for an answer. Nothing is evaluated as code. What numbers mean (percent, units) is
said in `semievol.quantities`.
"""

import difflib
import re
import string
import unicodedata
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from semievol.config import TaskConfig
from semievol.errors import DataError
from semievol.letters import read_letter
from semievol.quantities import last_number, numbers_agree, read_number, read_statement, tidy_numbers, write_number
from semievol.statements import (
    TextIndex,
    find_statements,
    first_line,
    fold_text,
    strip_thinking,
    template_frame,
    text_index,
)
from semievol.types import Example, TaskFacts, choice_letter

_DEFAULT_METRICS = {
    "choice": "accuracy",
    "label": "accuracy",
    "number": "accuracy",
    "span": "exact_match",
    "text": "rouge_l",
}
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_BULLET = re.compile(r"\n[ \t]{0,8}[-+*][ \t]{1,4}")
_LATEX_SPAN = re.compile(r"\\(?:boxed|text|textbf|mathrm)\s{0,2}\{([^{}]*)\}")
_CLAUSE = re.compile(r"[.,;:!?()/\n]|\s-\s")
_SPAN_MARKS = " \t*_`\"'\u2018\u2019\u201c\u201d"
_TOKEN = re.compile(r"[\u0e00-\u0eff\u2e80-\ud7ff\uf900-\ufaff]|[^\W_\u0e00-\u0eff\u2e80-\ud7ff\uf900-\ufaff]+")


class Target(NamedTuple):
    """A target in normal form; `repaired` says what had to be guessed to read it, None if nothing."""

    value: str
    repaired: str | None = None


def closed_set(example: Example, task: TaskConfig, facts: TaskFacts) -> tuple[str, ...]:
    """The answers that are possible for a row: its letters, or the task's labels; empty for open answer types."""
    if task.type == "choice":
        return tuple(choice_letter(i) for i in range(len(example.choices)))
    return facts.labels if task.type == "label" else ()


def parse_answer(text: str, example: Example, task: TaskConfig, facts: TaskFacts) -> str | None:
    """The answer that `text` gives, or None if it gives none or more than one.

    choice: the letter. label: the label as in `facts`. number: canonical decimal or fraction. span: the first line
    after the marker, or of the text, trimmed. text: all of it, trimmed. What stands in `<think>` is no part of it.
    """
    body = strip_thinking(text)
    if not body:
        return None
    if task.type == "choice":
        return read_letter(body, example.choices, task.completion_template)
    if task.type == "label":
        return _read_label(body, facts.labels, task.completion_template)
    if task.type == "number":
        return _read_number(body, task.completion_template)
    if task.type == "span":
        return _read_span(body, task.completion_template)
    return _unframe(body, task.completion_template)


def normal_form(answer: str, task: TaskConfig) -> str:
    """The key under which two answers agree; for one that is already a key, the same key.

    choice: the letter in upper case; label: as it is; number: canonical; span: SQuAD normalisation (arXiv:1606.05250:
    case, punctuation, articles and spacing); text: case and spacing. Never empty for an answer that is not blank.
    """
    if task.type == "choice":
        return answer.strip().upper()
    if task.type == "label":
        return answer.strip()
    if task.type == "number":
        value = read_number(answer)
        return answer.strip() if value is None else write_number(value)
    folded = _fold(answer)
    if task.type == "text":
        return folded
    return _squad_form(folded)


def normalize_target(raw: str, example: Example, task: TaskConfig, facts: TaskFacts) -> Target:
    """Bring a value of the target column to the form that `parse_answer` gives.

    choice takes a letter, an option's text, or (ARC has these) a digit '1'..'n', which is reported in `repaired`.
    label takes the label up to case, punctuation and spacing. number takes a number, or text that ends in
    `#### number` (GSM8K).

    Raises:
        DataError: If the value is empty, not among the options or labels, not a number, or can be read in two ways.
    """
    value = raw.strip()
    if not value:
        raise DataError(f"row {example.id}: the target is empty: fill it in, or put the row among the unlabelled ones")
    if task.type == "choice":
        return _choice_target(value, example)
    if task.type == "label":
        return _label_target(value, example, facts.labels)
    if task.type == "number":
        number = read_number(value.rpartition("####")[2])
        if number is None:
            raise DataError(
                f"row {example.id}: target {value!r} is not a number: write it like 1234.5, -3 or 1/2, "
                "or set task.type to span or text"
            )
        return Target(write_number(number))
    return Target(value)


GRADED = ("token_f1", "rouge_l")
"""Metrics that give shares of a point."""


def default_metric(task: TaskConfig) -> str:
    """The metric of the task: the one that is set, else accuracy, exact_match (span) or rouge_l (text)."""
    return task.metric or _DEFAULT_METRICS[task.type]


def score_answer(answer: str | None, target: str, example: Example, task: TaskConfig) -> float:
    """Score in [0, 1] of `answer` under the task's metric; None (no answer) scores 0.

    accuracy and exact_match: 1.0 where the normal forms agree (numbers: within `task.number_tolerance`, relative).

    Raises:
        DataError: If a number task has a target that is not a number.
    """
    if answer is None:
        return 0.0
    metric = default_metric(task)
    if metric == "token_f1":
        return token_f1(normal_form(answer, task), normal_form(target, task))
    if metric == "rouge_l":
        return rouge_l(answer, target)
    if task.type == "number":
        wanted, given = read_number(target), read_number(answer)
        if wanted is None:
            raise DataError(f"row {example.id}: target {target!r} is not a number")
        return float(given is not None and numbers_agree(given, wanted, task.number_tolerance))
    return float(normal_form(answer, task) == normal_form(target, task))


def token_f1(answer: str, target: str) -> float:
    """F1 of the two bags of whitespace tokens, as in SQuAD (arXiv:1606.05250, section 6.1). Both empty: 1.0."""
    given, wanted = answer.split(), target.split()
    if not given or not wanted:
        return float(given == wanted)
    n_common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * n_common / (len(given) + len(wanted))


def rouge_l(answer: str, target: str) -> float:
    """F1 from the longest common subsequence of words (Lin 2004, ROUGE-L with beta = 1), without stemming.

    Characters are the words of scripts that put no spaces between them. Both without words: 1.0 if they are equal.
    """
    given, wanted = _TOKEN.findall(_fold(answer)), _TOKEN.findall(_fold(target))
    if not given or not wanted:
        return float(not given and not wanted and _fold(answer) == _fold(target))
    return 2 * _common_length(given, wanted) / (len(given) + len(wanted))


def _common_length(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, one row a machine integer (Hyyro 2004), O(len(a) len(b) / 64)."""
    positions: dict[str, int] = {}
    for index, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        hits = row & positions.get(token, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(a) - row.bit_count()


def _read_label(body: str, labels: tuple[str, ...], template: str | None) -> str | None:
    index = text_index(labels)
    whole = index.exact(body)
    if whole is not None:
        return labels[whole]
    statements = find_statements(body, template)
    for statement in _last_line_first(statements):
        for reading in (statement, first_line(statement)):
            found = index.exact(reading)
            if found is not None:
                return labels[found]
    for statement in reversed(statements):
        line = first_line(statement)
        named = _leading_labels(line, index) or index.contained(fold_text(line))
        if named:
            return labels[named.pop()] if len(named) == 1 else None
    lines = body.split("\n")
    outright = _leading_labels(lines[0], index) | _leading_labels(lines[-1], index)
    named = outright or index.contained(fold_text(body))
    return labels[named.pop()] if len(named) == 1 else None


def _leading_labels(line: str, index: TextIndex) -> set[int]:
    """The label that a line begins with ("Yes, because no one ..."), and a second one right behind ("yes, no")."""
    found = index.exact(line)
    if found is not None:
        return {found}
    head, *rest = _CLAUSE.split(line, maxsplit=2)
    first = index.exact(head)
    second = index.exact(re.sub(r"^\s*(?:or|and)\b", "", rest[0])) if rest else None
    return {position for position in (first, second) if position is not None} if first is not None else set()


def _last_line_first(statements: list[str]) -> list[str]:
    """Statements by line, last line first; of markers on one line the first: a label may hold one ("answer is no")."""
    return sorted(statements, key=lambda statement: statement.count("\n"))


def _read_number(body: str, template: str | None) -> str | None:
    text = fold_text(tidy_numbers(_BULLET.sub("\n", body)))
    value: Fraction | None
    statements = find_statements(text, template)
    for statement in reversed(statements):
        line = first_line(statement)
        if any(ch.isdigit() for ch in line):
            value = read_statement(line)
            return None if value is None else write_number(value)
    value = None if statements else last_number(text)
    return None if value is None else write_number(value)


def _read_span(body: str, template: str | None) -> str | None:
    statements = find_statements(body, template)
    for statement in reversed(statements):
        span = _trim_span(first_line(statement))
        if span:
            return span
    return None if statements else _trim_span(first_line(body)) or None


def _trim_span(line: str) -> str:
    if "\\" in line:
        line = _LATEX_SPAN.sub(r"\1", _LATEX_SPAN.sub(r"\1", line))
    span = line.strip(_SPAN_MARKS)
    return span[:-1].strip(_SPAN_MARKS) if span.endswith(".") and span.count(".") == 1 else span


def _unframe(body: str, template: str | None) -> str | None:
    """A whole text without the literal words that the completion template puts around the answer."""
    before, after = template_frame(template)
    start = before.match(body) if before is not None else None
    body = body[start.end() :] if start else body
    end = after.search(body) if after is not None else None
    return (body[: end.start()] if end else body).strip() or None


def _choice_target(value: str, example: Example) -> Target:
    letters = [choice_letter(i) for i in range(len(example.choices))]
    index = text_index(example.choices)
    by_text = index.exact(value)
    letter = value.strip("()[].: ").upper()
    if letter in letters:
        if by_text is not None and letters[by_text] != letter:
            return Target(letter, f"target {value!r} is also the text of option {letters[by_text]}; read as the letter")
        return Target(letter)
    if by_text is not None:
        return Target(letters[by_text])
    both = re.fullmatch(r"\(?([A-Za-z]{1,3})[).:]\s*(\S.*)", value, re.DOTALL)
    if both and both.group(1).upper() in letters and index.exact(both.group(2)) == letters.index(both.group(1).upper()):
        return Target(both.group(1).upper())
    has_digit_options = any(choice.strip().isdigit() for choice in example.choices)
    if re.fullmatch(r"[1-9][0-9]{0,2}", value) and int(value) <= len(letters) and not has_digit_options:
        letter = letters[int(value) - 1]
        return Target(letter, f"digit answer {value!r} read as {letter}")
    raise DataError(
        f"row {example.id}: target {value!r} is not one of the {len(letters)} options: write a letter"
        f"{f' ({letters[0]} to {letters[-1]})' if letters else ''} or the text of exactly one option"
        f"{'; positions counted from 0 have to be turned into letters first' if value.isdigit() else ''}"
    )


def _label_target(value: str, example: Example, labels: tuple[str, ...]) -> Target:
    found = text_index(labels).exact(value)
    if found is not None:
        return Target(labels[found])
    near = difflib.get_close_matches(value, labels, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    raise DataError(
        f"row {example.id}: target {value!r} is not one of the labels ({shown}){hint}: "
        "correct it, or add it to task.labels"
    )


def _fold(text: str) -> str:
    """NFKC, case-folded, one space between words; repeated until it stays, as a few characters take two passes."""
    for _ in range(4):
        folded = " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())
        if folded == text:
            break
        text = folded
    return text


def _squad_form(folded: str) -> str:
    marks = string.punctuation
    plain = _fold("".join(ch for ch in folded if ch not in marks and not unicodedata.category(ch).startswith("P")))
    form = _fold(_ARTICLE.sub(" ", plain)) or plain or folded
    return form if form == folded else _squad_form(form)
