"""Finds out which column holds what, and reads the fields of one row.

A column is taken by the config's word for it, else by its usual names, in the order below; names are compared without
case, and blanks and hyphens count as underscores. An empty string in the config (`group: ""`) says that there is none.
Options may be a list, a JSON list, a Python list as pandas writes one (read as a literal, never run), a mapping from
letters to options, `{"text": [...], "label": [...]}` as in ARC, or stand in columns A, B, C or option_a, option_b.
"""

import ast
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from semievol.config import AnswerType, ColumnsConfig
from semievol.errors import ConfigError
from semievol.types import Message, Role

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue"),
    "question": (
        "question", "prompt", "input", "query", "text", "sentence", "ticket", "utterance", "problem", "message",
        "instruction", "content", "title",
    ),
    "choices": ("options", "choices", "option_list", "answer_choices", "candidates"),
    "target": (
        "answer", "target", "label", "answer_key", "answerkey", "gold", "ground_truth", "gt", "correct_answer",
        "output", "response", "completion", "answers", "category", "intent", "class", "sentiment", "solution",
    ),
    "context": (
        "context", "passage", "article", "abstract", "document", "paragraph", "background", "evidence", "support",
        "story",
    ),
    "id": ("id", "uid", "example_id", "question_id", "row_id", "_id"),
    "group": ("group", "group_id", "category", "subject", "topic", "document_id", "doc_id", "customer_id", "user_id"),
}  # fmt: skip
"""Roles in the order in which they take their column; a column has one role."""

_OPTION_COLUMN = re.compile(r"(option|choice|opt|op|answer)?_?([a-z]|\d{1,2})")
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Name of the column of each role in one file; None where the file has none."""

    question: str | None = None
    context: str | None = None
    choices: str | None = None
    option_columns: tuple[str, ...] = ()
    """Columns that hold one option each, in order; used where `choices` is None."""
    target: str | None = None
    group: str | None = None
    id: str | None = None
    messages: str | None = None


class FieldError(Exception):
    """One field of one row cannot be used."""

    def __init__(self, field: str, value: object, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.field, self.value, self.reason, self.remedy = field, value, reason, remedy


class Fields(NamedTuple):
    """What a row says, its target still raw."""

    id: str | None
    question: str
    context: str | None
    choices: tuple[str, ...]
    option_names: tuple[str, ...]
    """What the row calls its options, where that is not A, B, C."""
    group: str | None
    history: tuple[Message, ...]
    target: str | None
    n_nan_options: int


def resolve_columns(
    names: Sequence[str], config: ColumnsConfig, *, file: str, task_type: AnswerType, model: Columns | None = None
) -> tuple[Columns, list[str]]:
    """Decide which column holds what; also returns a note for each choice among several candidates.

    Args:
        names: Columns of the file.
        config: What the user says about them.
        file: Named in notes and errors.
        task_type: Options are looked for only for `choice`.
        model: Columns of the labelled file; the same names are taken here where the file has them.

    Raises:
        ConfigError: If a configured column is not there, or none holds the question (for `choice`: the options).
    """
    taken: dict[str, str] = {}
    notes: list[str] = []
    off = {role for role in USUAL_NAMES if getattr(config, role) == ""}
    for role in USUAL_NAMES:
        name = getattr(config, role)
        if name:
            if name not in names and not (role == "target" and model is not None):
                raise ConfigError(_missing_column(role, name, names, file))
            if name in names:
                taken[role] = name
    configured = set(taken)
    for role in USUAL_NAMES:
        if role in configured or role in off or (role == "choices" and task_type != "choice"):
            continue
        if getattr(config, role):  # the configured target, absent from a file without targets
            continue
        known = getattr(model, role) if model is not None else None
        free = [name for name in names if name not in taken.values()]
        fits = [known] if known in free else _candidates(role, free)
        if model is not None and known is None and role in ("context", "id", "group"):
            fits = []  # what labelled rows do not have, others may not either: it might say the answer
        if role == "messages" and fits and ("question" in configured or _has_question_and_target(free)):
            continue
        if role == "question" and "messages" in taken:
            continue
        if role == "target" and "messages" in taken and "target" not in configured:
            continue
        if fits:
            taken[role] = fits[0]
        if len(fits) > 1 or (fits and role == "group" and known is None):
            others = f" (also there: {', '.join(fits[1:])})" if len(fits) > 1 else ""
            notes.append(f"{file}: {role} is read from column {fits[0]!r}{others}; data.columns.{role} sets another")
    columns = Columns(**taken)  # type: ignore[arg-type]  # option_columns is no role
    if task_type == "choice" and columns.choices is None and "choices" not in off:
        columns = replace(columns, option_columns=_find_option_columns(names, set(taken.values())))
    _check_columns(columns, names, file, task_type)
    return columns, notes


def _has_question_and_target(names: Sequence[str]) -> bool:
    return bool(_candidates("question", names) and _candidates("target", names))


def _candidates(role: str, names: Sequence[str]) -> list[str]:
    by_plain: dict[str, str] = {}
    for name in names:
        by_plain.setdefault(_plain(name), name)
    return [by_plain[usual] for usual in USUAL_NAMES[role] if usual in by_plain]


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip()).casefold()


def _find_option_columns(names: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    """Columns A, B, C...; option_a...; option1...: at least two in a row from the first on, the longest family."""
    families: dict[str, dict[str, str]] = {}
    for name in names:
        found = _OPTION_COLUMN.fullmatch(_plain(name))
        if found and name not in taken:
            families.setdefault(found.group(1) or "", {})[found.group(2)] = name
    runs: list[tuple[str, ...]] = []
    for members in families.values():
        for keys in ("abcdefghijklmnopqrstuvwxyz", [str(i) for i in range(100)], [str(i) for i in range(1, 100)]):
            run: list[str] = []
            for key in keys:
                if key not in members:
                    break
                run.append(members[key])
            runs.append(tuple(run))
    longest = max(runs, key=len, default=())
    return longest if len(longest) >= 2 else ()


def _missing_column(role: str, name: str, names: Sequence[str], file: str) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"data.columns.{role}: {file} has no column {name!r}; {hint}its columns: {', '.join(names)}"


def _check_columns(columns: Columns, names: Sequence[str], file: str, task_type: AnswerType) -> None:
    listed = ", ".join(names)
    if columns.question is None and columns.messages is None:
        raise ConfigError(
            f"{file}: no column with a usual name holds the question (columns: {listed}); set data.columns.question"
        )
    if task_type == "choice" and columns.choices is None and not columns.option_columns:
        raise ConfigError(
            f"{file}: task.type is choice, but no column holds the options (columns: {listed}); "
            "set data.columns.choices, or task.type=label for one fixed set of labels"
        )


def read_fields(values: Mapping[str, Any], columns: Columns, *, task_type: AnswerType) -> Fields:
    """Read one row, but its target only where it is a turn of a chat. Raises FieldError for the first faulty field."""
    history: tuple[Message, ...] = ()
    target: str | None = None
    if columns.messages is not None:
        question, history, target = _read_messages(values.get(columns.messages), columns.messages)
    else:
        column = cast(str, columns.question)
        question = _read_text(values.get(column), column) or ""
        if not question:
            reason = "the question is missing" if column in values else "the field is missing"
            raise FieldError(column, values.get(column), reason, "fill it in, or remove the row")
    choices: tuple[str, ...] = ()
    option_names: tuple[str, ...] = ()
    n_nan_options = 0
    if task_type == "choice":
        choices, option_names, n_nan_options = _read_options(values, columns)
    return Fields(
        id=_read_optional(values, columns.id),
        question=question,
        context=_read_optional(values, columns.context),
        choices=choices,
        option_names=option_names,
        group=_read_optional(values, columns.group),
        history=history,
        target=target,
        n_nan_options=n_nan_options,
    )


def _read_optional(values: Mapping[str, Any], column: str | None) -> str | None:
    if column is None:
        return None
    value = values.get(column)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    return _read_text(value, column)


def _read_text(value: object, column: str) -> str | None:
    """The field as text; None where it is empty, null or NaN."""
    if value is None or value != value:  # NaN alone differs from itself
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))  # a column of integers with gaps comes back as floats
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FieldError(column, repr(value[:40]), "not UTF-8 text", "write the column as UTF-8 text") from error
    if isinstance(value, list | tuple | dict):
        raise FieldError(column, value, f"a {type(value).__name__}, not text", "give one text a row")
    text = str(value).strip()
    if text and not text.isascii():
        _check_encodable(text, column)
    return text or None


def _check_encodable(text: str, column: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        reason = f"half of a surrogate pair at character {error.start + 1}, which is no text"
        raise FieldError(column, ascii(text), reason, "write the file again from the original text") from error


def read_target(value: object, column: str) -> str | None:
    """The raw target; of a list (or SQuAD's `{"text": [...]}`) its only member. Raises FieldError for several."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = value["text"]
    if isinstance(value, list | tuple):
        different = list(dict.fromkeys(str(part) for part in value))
        if len(different) > 1:
            raise FieldError(column, value, f"{len(different)} different answers", "give one answer a row")
        value = value[0] if value else None
    return _read_text(value, column)


def _read_options(values: Mapping[str, Any], columns: Columns) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Options, their names in the row, and how many were NaN: the text None (or N/A) after a trip through pandas."""
    if columns.choices is None:
        texts = [(name, _read_text(values.get(name), name)) for name in columns.option_columns]
        while texts and texts[-1][1] is None:  # rows may have fewer options than the file has columns
            texts.pop()
        for name, text in texts:
            if text is None:
                raise FieldError(name, values.get(name), "the option is empty", "fill it in, or remove the row")
        return _check_options(columns.option_columns[0], texts, [text for _, text in texts]), (), 0
    column = columns.choices
    raw = values.get(column)
    parsed = _parse_options(raw, column)
    option_names: tuple[str, ...] = ()
    if isinstance(parsed, dict):
        if isinstance(parsed.get("text"), list):
            option_names = tuple(str(name) for name in parsed.get("label") or ())
            parsed = parsed["text"]
        else:
            option_names = tuple(str(name) for name in parsed)
            parsed = list(parsed.values())
    if not isinstance(parsed, list):
        remedy = 'write a JSON list, such as ["yes", "no"]'
        raise FieldError(column, raw, "the options are not a list", remedy)
    n_nan = sum(option != option for option in parsed)  # NaN alone differs from itself
    options = ["None" if option != option else _read_text(option, column) for option in parsed]
    names = option_names if len(option_names) == len(options) else ()
    for name in names:
        _check_encodable(name, column)
    return _check_options(column, raw, options), names, n_nan


def _check_options(column: str, raw: object, options: Sequence[str | None]) -> tuple[str, ...]:
    if len(options) < 2:
        raise FieldError(column, raw, f"{len(options)} options", "give at least two, or remove the row")
    for number, option in enumerate(options, start=1):
        if option is None:
            raise FieldError(column, raw, f"option {number} is empty", "fill it in, or remove the row")
    return tuple(option for option in options if option is not None)


def _parse_options(raw: object, column: str) -> object:
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        raise FieldError(column, raw, "the options are missing", "fill them in, or remove the row")
    if not isinstance(raw, str):
        return list(raw) if isinstance(raw, tuple) else raw
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        pass
    if raw.lstrip()[0] not in "[{(":
        return raw
    try:
        parsed = ast.literal_eval(raw.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return raw
    return list(parsed) if isinstance(parsed, tuple) else parsed


def _read_messages(raw: object, column: str) -> tuple[str, tuple[Message, ...], str | None]:
    """Question, history and raw target of a chat row."""
    remedy = 'give a list of {"role": "user" or "assistant", "content": ...}'
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):
            raise FieldError(column, raw, "not a JSON list of turns", remedy) from None
    if not isinstance(raw, list) or not raw:
        raise FieldError(column, raw, "the turns are missing or not a list", remedy)
    turns = [_read_turn(turn, i, column, remedy) for i, turn in enumerate(raw, start=1)]
    last_user = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last_user is None:
        raise FieldError(column, raw, "no turn of the user", remedy)
    after = turns[last_user + 1 :]
    if len(after) > 1 or any(turn.role != "assistant" for turn in after):
        reason = f"{len(after)} turns behind the last one of the user"
        raise FieldError(column, raw, reason, "end each row with the user's turn, or with it and one answer")
    return turns[last_user].content, tuple(turns[:last_user]), after[0].content if after else None


def _read_turn(turn: object, number: int, column: str, remedy: str) -> Message:
    if not isinstance(turn, dict):
        raise FieldError(column, turn, f"turn {number} is not an object", remedy)
    name = turn.get("role", turn.get("from"))
    role = _ROLES.get(str(name).casefold())
    if role is None:
        raise FieldError(column, name, f"turn {number} has an unknown role", remedy)
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # content parts, as chat endpoints take them
        content = "\n".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    text = _read_text(content, column)
    if text is None:
        raise FieldError(column, content, f"turn {number} is empty", "fill it in, or remove the row")
    return Message(role, text)
