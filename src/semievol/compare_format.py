"""A table of values, and its text as CSV, Markdown and LaTeX.

CSV carries the values as they are (shares in [0, 1], an interval in two columns); the other forms carry percent with
one decimal.
"""

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from semievol.compare_text import duration, large
from semievol.report_tables import Mark, format_bytes, place_marks
from semievol.report_text import MINUS, interval, percent, signed

DASH = "\N{EN DASH}"
SIGNAL_TITLES = {
    "mean_nll": "mean NLL",
    "entropy": "exact entropy",
    "agreement": "agreement",
    "max_probability": "max probability",
}


class Column(NamedTuple):
    """A column. `kind`: text, percent, points, interval, count, decimal, p, duration, large or bytes."""

    key: str
    title: str
    kind: str = "text"


class Table(NamedTuple):
    """Values by column key; `track` names (value, interval, marks zero) drawn as a dot with its interval."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    track: tuple[str, str, bool] | None = None
    note: str = ""


def format_value(value: Any, kind: str) -> str:
    """A value as text; a dash for None."""
    if value is None or value == "":
        return DASH
    if kind == "percent":
        return percent(value).replace("-", MINUS)
    if kind == "points":
        return signed(value)
    if kind == "interval":
        return interval(*value)
    if kind == "p":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "decimal":
        return f"{value:.3f}"
    formats: dict[str, Callable[[Any], str]] = {
        "duration": duration,
        "large": large,
        "bytes": lambda n: format_bytes(int(n)),
    }
    return formats[kind](value) if kind in formats else str(value)


def table_marks(table: Table) -> list[Mark | None]:
    """Places of dot and interval on one scale, for rows that have them."""
    if table.track is None:
        return [None] * len(table.rows)
    value, ends, zero = table.track
    triples = [
        None if row[value] is None or row[ends] is None else (row[ends][0], row[value], row[ends][1])
        for row in table.rows
    ]
    marks = iter(place_marks([t for t in triples if t is not None], zero=zero))
    return [None if t is None else next(marks) for t in triples]


def table_csv(table: Table) -> str:
    """Comma-separated, values as they are; None is an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([name for c in table.columns for name in _csv_names(c)])
    for row in table.rows:
        writer.writerow([field for c in table.columns for field in _csv_fields(row[c.key], c)])
    return stream.getvalue()


def table_markdown(table: Table) -> str:
    """A pipe table under its title."""
    lines = [
        "| " + " | ".join(_escape_markdown(c.title) for c in table.columns) + " |",
        "|" + "|".join(" :-- " if c.kind == "text" else " --: " for c in table.columns) + "|",
    ]
    for row in table.rows:
        cells = [_escape_markdown(format_value(row[c.key], c.kind)) for c in table.columns]
        lines.append("| " + " | ".join(cells) + " |")
    note = [f"\n{_escape_markdown(table.note)}"] if table.note else []
    return "\n".join([f"**{_escape_markdown(table.title)}**\n", *lines, *note]) + "\n"


def table_latex(table: Table) -> str:
    """A `tabular` with booktabs rules."""
    shape = "".join("l" if c.kind == "text" else "r" for c in table.columns)
    lines = [
        f"% {_escape_latex(table.title)}",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
        " & ".join(_escape_latex(c.title) for c in table.columns) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = " & ".join(_escape_latex(format_value(row[c.key], c.kind)) for c in table.columns)
        lines.append(f"{'{}' if cells[:1] in ('[', '*') else ''}{cells} " + r"\\")  # \\[ and \\* mean something else
    note = [f"% {_escape_latex(table.note)}"] if table.note else []
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *note]) + "\n"


def _csv_names(column: Column) -> tuple[str, ...]:
    return (f"{column.key}_low", f"{column.key}_high") if column.kind == "interval" else (column.key,)


def _csv_fields(value: Any, column: Column) -> tuple[Any, ...]:
    if column.kind == "interval":
        return ("", "") if value is None else tuple(value)
    return ("" if value is None else value,)


def _escape_markdown(text: str) -> str:
    one_line = " ".join(text.split())
    for sign in "\\|`*_<>[]$&~":
        one_line = one_line.replace(sign, f"\\{sign}")
    return one_line


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


_LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\N{EN DASH}": "--",
    "\N{MINUS SIGN}": "$-$",
}
