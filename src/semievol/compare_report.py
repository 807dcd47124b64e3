"""Writes what a comparison found: one page, tables as CSV, Markdown and LaTeX, figures as SVG, results.json.

All of it is worked out again from the rows in the run folders, so a copied folder gives the same bytes. Layout:

    compare.html               the page, one file that needs no network
    results.json               every number (schema in `build_results`)
    tables/<name>.csv|md|tex   those of TABLES
    figures/<name>.svg
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from semievol import metrics
from semievol.arms import METHOD_ARM
from semievol.artifacts import RunDir, clear_disk_errors
from semievol.compare_details import (
    calibrate,
    count_rows,
    group_lines_of,
    has_same_labels,
    mean_cost,
    measure_groups,
    oracle_labels,
    rate_signals,
    spread_over_sweep,
    total_cost,
)
from semievol.compare_figures import standalone
from semievol.compare_format import Table, format_value, table_csv, table_latex, table_markdown, table_marks
from semievol.compare_load import Cell, ComparisonData, answer_rates, load_comparison
from semievol.compare_plots import Figures, arm_kind, draw_figures
from semievol.compare_results import (
    FALLBACKS,
    PairedResult,
    close_gaps,
    compare_cells,
    compare_with_reference,
    find_reference,
    measure_cell,
    metric_name,
)
from semievol.compare_tables import build_tables
from semievol.compare_text import KEY_TITLES, against, arm_label, cell_label, write_verdict
from semievol.errors import ConfigError
from semievol.report import page_environment
from semievol.report_text import GRADED_METRICS, LEVEL, METRIC_NAMES

SCHEMA_VERSION = 1
TEMPLATE = "compare.html.j2"
MIN_COLUMNS = 5
"""A terminal gets at least so many of the main table."""
GAP = 2
"""Spaces between columns there."""
LABELED_ONLY = ("sft", "sft_matched")
"""Arms that learn from labelled rows alone."""
TABLES = (
    "main",
    "differences",
    "parts",
    "gap",
    "spread",
    "cost",
    "calibration",
    "signals",
    "groups",
    "sweep",
    "rows",
    "runs",
)
FIGURES = ("forest", "cost", "parts", "risk_coverage", "reliability", "entropy", "groups")
SWEEP_FIGURES = ("sweep", "sweep_difference")
WRITERS: Mapping[str, Callable[[Table], str]] = {"csv": table_csv, "md": table_markdown, "tex": table_latex}


def write_compare_report(folder: Path, *, formats: Sequence[str] = ("csv", "md", "tex")) -> Path:
    """Write the report of a comparison into its folder and return the path of the page.

    Args:
        folder: Of the comparison; runs that are not done are shown as failed or pending.
        formats: Of the tables: csv, md, tex.

    Raises:
        ConfigError: If a format is unknown.
        ArtifactError: If the folder is no comparison, or a run that is done lacks a part.
    """
    unknown = [name for name in formats if name not in WRITERS]
    if unknown:
        raise ConfigError(f"table format {unknown[0]!r} is unknown; formats: {', '.join(WRITERS)}")
    data = load_comparison(folder)
    results = build_results(data)
    tables = build_tables(results)
    figures = draw_figures(data, results)
    out = RunDir(folder)
    out.write_json("results", results)
    written = {
        *(out.write_text(f"tables/{t.name}.{kind}", WRITERS[kind](t)) for t in tables.values() for kind in formats),
        *(out.write_text(f"figures/{name}.svg", standalone(svg)) for name, svg in figures.items()),
    }
    page = out.write_text("compare.html", draw_page(results, tables, figures))
    _remove_old(folder, written)
    return page


def build_results(data: ComparisonData) -> dict[str, Any]:
    """Everything that the report says, as plain values; shares and differences are fractions.

    Keys:
        schema_version: Of this layout; it changes when a key changes its meaning or goes.
        metric: accuracy, exact_match, token_f1 or rouge_l.
        model, reference, main, use_gold, seeds, splits, sweep: What was compared; `main` is the arm of the verdict.
        config: What all arms start from (`compare_load.ComparisonData.common_config`).
        reference_asked: The arm that was to be the reference; another stands in where no run of it is done.
        rows: `compare_details.count_rows`: rows of each split, and how many were left out.
        n_runs: Number of runs by state: done, failed, pending.
        total_cost: `compare_details.total_cost`: of the whole comparison, each shared step once.
        arms: One entry for each arm and setting: arm, label, description, uses_gold, setting, status, the fields of
            `compare_results.Measured` (None without a finished run), unfinished (split, seed, status, error), cost
            (`compare_load.run_cost`, mean of a run), steps_from_base (`compare_load.ArmRun.steps_from_base`, mean),
            precisions, versions, calibration (`compare_details.Calibration`), signals
            (`compare_details.SignalQuality`) and oracle_labels (`compare_details.oracle_labels`).
        controls: The same of the controls of their own that arms have (`compare_load.ComparisonData.controls`).
        differences: `compare_results.PairedResult` of each arm against the reference, or its own control.
        headline: The one of them that the verdict reads; None where there is none.
        headline_other: The method against another arm that learns from labelled rows alone, where the reference is at
            chance or below that arm; else None.
        parts: The same, of the method minus each arm `<method>-<part>`, with Holm over the parts.
        gap_closed: `compare_results.GapClosed` of each arm; empty without the gold arm.
        groups: arm, setting, group, value, ci_low, ci_high, n.
        sweep_spread: `compare_details.spread_over_sweep`.
        same_labels: `compare_details.has_same_labels`.
        verdict: sentence, points (question and answer) and remarks.
    """
    states = Counter(run.status for cell in data.all_cells for run in cell.runs)
    rates = answer_rates(data)
    asked, data = data.reference, replace(data, reference=find_reference(data))
    main = choose_main(data)
    lines_of_groups = group_lines_of(data)
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "metric": metric_name(data),
        "model": None if "model.path" in data.sweep else (data.config.get("model") or {}).get("path"),
        "reference": data.reference,
        "reference_label": _label(data, data.reference),
        "reference_asked": asked,
        "main": main,
        "main_label": _label(data, main),
        "use_gold": data.use_gold,
        "config": dict(data.common_config),
        "seeds": list(data.seeds),
        "splits": list(data.splits),
        "sweep": {key: list(values) for key, values in data.sweep.items()},
        "n_runs": {state: states.get(state, 0) for state in ("done", "failed", "pending")},
        "rows": count_rows(data),
        "total_cost": total_cost(data),
        "arms": [_describe(data, cell, rates) for cell in data.cells],
        "controls": [_describe(data, cell, rates) for cell in data.controls],
        "differences": [asdict(found) for found in compare_with_reference(data)],
        "headline": _headline(data, main),
        "headline_other": _headline_other(data, main),
        "parts": [asdict(found) for found in compare_parts(data, main)],
        "gap_closed": [asdict(found) for found in close_gaps(data)],
        "groups": [line for cell in data.cells for line in measure_groups(cell, lines_of_groups)],
        "sweep_spread": spread_over_sweep(data),
        "same_labels": has_same_labels(data),
    }
    results["verdict"] = write_verdict(results)._asdict()
    return results


def draw_page(results: Mapping[str, Any], tables: Mapping[str, Table], figures: Figures) -> str:
    """The page."""
    environment = page_environment()
    environment.filters["cell"] = format_value
    environment.globals["table_marks"] = table_marks
    marked = {name: _mark_rows(table, results) for name, table in tables.items()}
    source = next((entry["label"] for entry in results["arms"] if entry["signals"] and _is_drawn(entry, results)), "")
    page: str = environment.get_template(TEMPLATE).render(
        title="Comparison",
        results=results,
        verdict=results["verdict"],
        metric=METRIC_NAMES[results["metric"]],
        tables={name: marked.get(name) for name in TABLES},
        figures={name: Markup(figures.get(name, "")) for name in FIGURES},
        sweeps=[
            (KEY_TITLES.get(key, key), *(Markup(figures.get(f"{name}_{place}", "")) for name in SWEEP_FIGURES))
            for place, key in enumerate(results["sweep"], 1)
        ],
        failures=list_failures(results),
        resolved=json.dumps(results["config"], indent=2, ensure_ascii=False) if results["config"] else "",
        no_gap=_common_reason(results["gap_closed"]),
        arms=list({entry["arm"]: entry | {"label": _plain_label(entry)} for entry in results["arms"]}.values()),
        against=against(results),
        graded=results["metric"] in GRADED_METRICS,
        entropy_of=(
            "Entropy of the answer distribution"
            if any((entry["calibration"] or {}).get("mean_entropy") is not None for entry in results["arms"])
            else "Mean NLL of the answer"
        ),
        risk_caption=(
            f"{'Labels that score below 100' if results['metric'] in GRADED_METRICS else 'Wrong labels'} among the "
            f"surest pseudo-labels of {source}; dotted: among all. The audit used gold after all training."
        ),
    )
    return page


def _common_reason(gaps: Sequence[Mapping[str, Any]]) -> str:
    """Why no gap is defined, where that is one reason for all; else empty."""
    reasons = {gap["reason"] for gap in gaps}
    return reasons.pop() if len(reasons) == 1 and all(gap["value"] is None for gap in gaps) else ""


def short_table(folder: Path) -> Group:
    """The verdict and the main table for a terminal.

    Raises:
        ArtifactError: If the folder is no comparison.
    """
    results = build_results(load_comparison(folder))
    main = build_tables(results)["main"]
    table = _TerminalTable(main, bold=[entry["arm"] == results["main"] for entry in results["arms"]])
    verdict = results["verdict"]
    lines = [f"{question} {answer}" for question, answer in verdict["points"]]
    failed = [f"{f['label']} failed, {f['runs']}: {f['error']}" for f in list_failures(results)]
    notes = (Text(line, style="dim") for line in verdict["remarks"])
    return Group(Text(verdict["sentence"], style="bold"), *map(Text, lines), table, *map(Text, failed), *notes)


class _TerminalTable:
    """A table whose numbers are whole: where the terminal is too narrow the last columns are left out."""

    def __init__(self, table: Table, *, bold: Sequence[bool]) -> None:
        self._columns, self._bold = table.columns, bold
        self._cells = [[format_value(row[c.key], c.kind) for row in table.rows] for c in table.columns]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        n = len(self._columns)
        while n > MIN_COLUMNS and self._room(n, options.max_width) < 0:
            n -= 1
        yield self._draw(n, max(0, self._room(n, options.max_width)))

    def _least(self, place: int) -> int:
        """Width of the longest number, or word."""
        words = self._columns[place].title.split()
        for cell in self._cells[place]:
            words += cell.split() if self._columns[place].kind == "text" else [cell]
        return max(map(len, words))

    def _room(self, n: int, width: int) -> int:
        """What is left over of a width behind the first `n` columns."""
        return width - sum(self._least(place) for place in range(n)) - GAP * (n - 1)

    def _draw(self, n: int, room: int) -> RichTable:
        drawn = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        for place, column in enumerate(self._columns[:n]):
            width, is_text = self._least(place), column.kind == "text"
            if is_text:
                more = min(room, max(map(len, self._cells[place])) - width)
                width, room = width + max(0, more), room - max(0, more)
            title = column.title if len(column.title) <= width else column.title.replace(" ", "\n")
            drawn.add_column(title, justify="left" if is_text else "right", width=width)
        for row, is_bold in zip(zip(*self._cells[:n], strict=True), self._bold, strict=True):
            drawn.add_row(*map(Text, row), style="bold" if is_bold else "")
        return drawn


def choose_main(data: ComparisonData) -> str:
    """The arm that the verdict is about: the method, else the last arm that is not the reference, without gold if any.

    Where the method is the reference itself, it is held against an arm of FALLBACKS, if one is done.
    """
    names = [cell.arm.name for cell in data.cells]
    stands_in = any(cell.done and cell.arm.name in FALLBACKS for cell in data.cells)
    if METHOD_ARM in names and (data.reference != METHOD_ARM or stands_in):
        return METHOD_ARM
    others = [cell.arm for cell in data.cells if cell.arm.name != data.reference]
    chosen = [arm.name for arm in others if not arm.uses_gold] or [arm.name for arm in others]
    return chosen[-1] if chosen else data.reference


def compare_parts(data: ComparisonData, main: str) -> list[PairedResult]:
    """The method minus each arm that lacks a part, with Holm over them."""
    whole = data.find(main)
    if whole is None:
        return []
    cells = [cell for cell in data.cells if cell.arm.name.startswith(f"{main}-") and cell.setting == whole.setting]
    found = [paired for cell in cells if (paired := compare_cells(data, whole, cell)) is not None]
    adjusted = metrics.holm([f.p_value for f in found]).tolist() if found else []
    return [replace(f, p_holm=p) for f, p in zip(found, adjusted, strict=True)]


def list_failures(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """label, runs and error of the runs that failed; runs of one arm with the same error stand together."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in (*results["arms"], *results["controls"]):
        for run in entry["unfinished"]:
            if run["status"] == "failed":
                where = f"split {run['split']} " if len(results["splits"]) > 1 else ""
                found.setdefault((entry["label"], run["error"]), []).append(f"{where}seed {run['seed']}")
    return [{"label": label, "runs": ", ".join(runs), "error": error} for (label, error), runs in found.items()]


def _remove_old(folder: Path, written: Collection[Path]) -> None:
    """Tables and figures of an earlier report, which may have had more of them; nothing of another name."""
    old = [folder / "tables" / f"{name}.{kind}" for name in TABLES for kind in WRITERS]
    old += [folder / "figures" / f"{name}.svg" for name in FIGURES]
    old += [path for name in SWEEP_FIGURES for path in folder.glob(f"figures/{name}_[0-9]*.svg")]
    with clear_disk_errors(folder):
        for path in set(old) - set(written):
            path.unlink(missing_ok=True)


def _headline(data: ComparisonData, main: str) -> dict[str, Any] | None:
    ours = data.find(main)
    if ours is None:
        return None
    if data.reference != main:
        theirs = data.reference_of(ours)
    else:
        others = (data.find(name) for name in FALLBACKS if name != main)
        theirs = next((cell for cell in others if cell is not None and cell.done), None)
    if theirs is None or not theirs.done:
        return None
    found = compare_cells(data, ours, theirs)
    return None if found is None else asdict(found)


def _headline_other(data: ComparisonData, main: str) -> dict[str, Any] | None:
    """The method against another arm that learns from labelled rows alone, where the reference has learned less."""
    ours = data.find(main)
    if ours is None or data.reference not in LABELED_ONLY or main in LABELED_ONLY:
        return None
    reference = data.reference_of(ours)
    if reference is None:
        return None
    weak = measure_cell(data, reference)
    for name in LABELED_ONLY:
        other = data.find(name)
        if other is None or other.arm.name == reference.arm.name or weak is None:
            continue
        found, measured = compare_cells(data, other, reference), measure_cell(data, other)
        if found is None or measured is None or measured.at_chance or found.difference <= 0:
            continue
        if weak.at_chance or found.p_value <= LEVEL:
            against = compare_cells(data, ours, other)
            return None if against is None else asdict(against)
    return None


def _describe(data: ComparisonData, cell: Cell, rates: Mapping[str, float]) -> dict[str, Any]:
    measured = measure_cell(data, cell)
    calibration = calibrate(cell)
    empty = dict.fromkeys(
        (
            "value",
            "ci_low",
            "ci_high",
            "method",
            "seed_sd",
            "split_sd",
            "sampling_se",
            "n_rows",
            "n_groups",
            "macro_f1",
            "majority",
        )
    )
    steps = [run.steps_from_base for run in cell.done if run.steps_from_base is not None]
    return {
        "arm": cell.arm.name,
        "label": cell_label(cell.arm.name, cell.setting, uses_gold=cell.arm.uses_gold),
        "description": cell.arm.description,
        "uses_gold": cell.arm.uses_gold,
        "setting": dict(cell.setting),
        "status": cell.status,
        **(
            {**empty, "by_group": False, "at_chance": False, "n_answers": 0, "n_unparsed": 0, "by_run": ()}
            if measured is None
            else asdict(measured)
        ),
        "unfinished": [
            {"split": run.split, "seed": run.seed, "status": run.status, "error": run.error}
            for run in cell.runs
            if run.status != "done"
        ],
        "cost": mean_cost(cell, rates),
        "steps_from_base": sum(steps) / len(steps) if steps else None,
        "precisions": sorted(set().union(*(run.precisions for run in cell.done))),
        "versions": sorted(set().union(*(run.versions for run in cell.done))),
        "calibration": None if calibration is None else asdict(calibration),
        "signals": [asdict(signal) for signal in rate_signals(cell)],
        "oracle_labels": oracle_labels(cell),
    }


def _label(data: ComparisonData, arm: str) -> str:
    return arm_label(arm, uses_gold=any(cell.arm.name == arm and cell.arm.uses_gold for cell in data.cells))


def _plain_label(entry: Mapping[str, Any]) -> str:
    return arm_label(entry["arm"], uses_gold=entry["uses_gold"])


def _is_drawn(entry: Mapping[str, Any], results: Mapping[str, Any]) -> bool:
    """Whether its signals are those of the figure: the method's, else the first there are."""
    rated = [e["arm"] for e in results["arms"] if e["signals"]]
    return bool(entry["arm"] == (results["main"] if results["main"] in rated else rated[0]))


def _mark_rows(table: Table, results: Mapping[str, Any]) -> Table:
    """Give each row its place, and the colour of its arm."""
    kinds = {entry["arm"]: arm_kind(entry, results) for entry in (*results["arms"], *results["controls"])}
    rows = []
    for place, row in enumerate(table.rows):
        kind = kinds[row["name"]] if table.columns[0].key == "arm" else ""
        rows.append(
            {
                **row,
                "place": place,
                "kind": kind,
                "is_main": kind == "main" and table.name == "main" and not results["sweep"],
            }
        )
    return table._replace(rows=tuple(rows))
