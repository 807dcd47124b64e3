"""Markdown tables over all cells of benchmarks/quality.py, from the rows of each.

python benchmarks/quality_tables.py [FOLDER] [--cells NAME ...]          # default: all in runs/quality
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from semievol.arms import ARMS
from semievol.compare_load import load_comparison
from semievol.compare_report import build_results

Results = Mapping[str, Any]
"""The content of results.json of a comparison."""


def main() -> None:
    """Print the tables of all comparisons in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/quality"))
    parser.add_argument("--cells", nargs="+", help="these alone, in this order")
    arguments = parser.parse_args()
    for name in arguments.cells or ():
        if not (arguments.folder / name / "comparison.json").exists():
            parser.error(
                f"--cells {name}: {arguments.folder / name} holds no comparison; run benchmarks/quality.py first"
            )
    print(tables(read_cells(arguments.folder, arguments.cells)))


def read_cells(folder: Path, names: Sequence[str] | None = None) -> dict[str, Results]:
    """The results of each comparison in a folder (or of those named), from its rows; sweeps are left out."""
    folders = [path.parent for path in sorted(folder.glob("*/comparison.json"))]
    folders = folders if names is None else [folder / name for name in names]
    found = {place.name: build_results(load_comparison(place)) for place in folders}
    return {name: results for name, results in found.items() if not results["sweep"]}


def tables(cells: Mapping[str, Results]) -> str:
    """Accuracy of every arm, its difference to the reference, and what each part of the method adds, by cell."""
    parts = [
        "Accuracy in %, mean and standard deviation over draws; * where it is not seen to be better than the most "
        "frequent answer (runs a cell: "
        + ", ".join(f"{name} {max(_n_runs(results), default=0)}" for name, results in cells.items())
        + ")",
        _table(
            cells,
            [
                ["Most frequent answer", *(_majority(results) for results in cells.values())],
                *(_arm_row(arm, label, cells, _accuracy) for arm, label in (*_arms(cells), *_controls(cells))),
            ],
        ),
        "Difference to the reference, or to its own control where an arm has one, in points, with 95% intervals",
        _table(cells, [_arm_row(arm, label, cells, _difference) for arm, label in _arms(cells)]),
        "Over the cells with several draws, in points: the mean of the cells' mean differences, with 95% t intervals "
        "over the draws inside of them (they cover the drawn rows and the training, not that of test rows or cells)",
        _pooled_table(cells),
        "What the method gains over itself without a part, in points, with 95% intervals",
        _table(cells, [_arm_row(arm, label, cells, _part) for arm, label in _arms(cells)]),
        "Share of right pseudo-labels of the method in %: of all, of the half with the lowest mean NLL",
        _table(cells, [["SemiEvol", *(_precision(results) for results in cells.values())]]),
    ]
    return "\n\n".join(parts)


def _n_runs(results: Results) -> list[int]:
    return [len(entry["by_run"]) for entry in results["arms"] if entry["status"] == "done"]


def _arms(cells: Mapping[str, Results]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for results in cells.values():
        for entry in results["arms"]:
            found.setdefault(entry["arm"], entry["label"])
    places = list(ARMS)
    return sorted(found.items(), key=lambda item: places.index(item[0]))


def _controls(cells: Mapping[str, Results]) -> list[tuple[str, str]]:
    return list({entry["arm"]: entry["label"] for results in cells.values() for entry in results["controls"]}.items())


def _find(arm: str, results: Results) -> Mapping[str, Any] | None:
    return next((entry for entry in (*results["arms"], *results["controls"]) if entry["arm"] == arm), None)


def _arm_row(arm: str, label: str, cells: Mapping[str, Results], value: Any) -> list[str]:
    return [label, *(value(arm, results) for results in cells.values())]


def _accuracy(arm: str, results: Results) -> str:
    entry = _find(arm, results)
    if entry is None:
        return ""
    if entry["value"] is None:
        return str(entry["status"])
    spread = next((f" ± {100 * entry[key]:.1f}" for key in ("split_sd", "seed_sd") if entry[key] is not None), "")
    chance = "*" if entry["at_chance"] else ""
    n_missing = len(entry["unfinished"])
    return f"{100 * entry['value']:.1f}{spread}{chance}" + (f" ({n_missing} runs missing)" if n_missing else "")


def _majority(results: Results) -> str:
    found = [entry["majority"] for entry in results["arms"] if entry["majority"] is not None]
    return f"{100 * found[0]:.1f}" if found else ""


def _difference(arm: str, results: Results) -> str:
    found = next((d for d in results["differences"] if d["arm"] == arm), None)
    return "" if found is None else _interval(found)


def _part(arm: str, results: Results) -> str:
    found = next((d for d in results["parts"] if d["reference"] == arm), None)
    return "" if found is None else _interval(found)


def _interval(found: Mapping[str, Any]) -> str:
    value, low, high = (round(100 * found[key], 1) + 0.0 for key in ("difference", "ci_low", "ci_high"))  # no -0.0
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _pooled_table(cells: Mapping[str, Results]) -> str:
    lines = [["", "minus the reference", "minus the method", "cells", "draws"]]
    for arm, label in _arms(cells):
        found = [_pooled(cells, arm, _reference_of), _pooled(cells, arm, lambda _, results: results["main"])]
        if any(found):
            n_cells, n_draws = next((x.n_cells, x.n_draws) for x in found if x)
            lines.append([label, *(_interval(x._asdict()) if x else "" for x in found), str(n_cells), str(n_draws)])
    return _markdown(lines)


class Pooled(NamedTuple):
    """A mean over cells."""

    difference: float
    ci_low: float
    ci_high: float
    n_cells: int
    n_draws: int


def _pooled(cells: Mapping[str, Results], arm: str, other_of: Callable[[str, Results], str]) -> Pooled | None:
    """The mean of the cells' mean differences to another arm of each; None where no cell has several draws.

    Cells are fixed, draws are a sample in each: the variance of a cell's mean is that of its draws over their number,
    and the degrees of freedom are those of all cells together.
    """
    others = [(results, other_of(arm, results)) for results in cells.values()]
    by_cell = [_paired(results, arm, other) for results, other in others if other != arm]
    used = [differences for differences in by_cell if len(differences) > 1]
    if not used:
        return None
    mean = float(np.mean([np.mean(x) for x in used]))
    error = float(np.sqrt(sum(np.var(x, ddof=1) / len(x) for x in used))) / len(used)
    half = error * float(stats.t.ppf(0.975, sum(len(x) - 1 for x in used)))
    return Pooled(mean, mean - half, mean + half, len(used), sum(map(len, used)))


def _reference_of(arm: str, results: Results) -> str:
    """The reference of the comparison, or the control that is the arm's own."""
    found = next((d for d in results["differences"] if d["arm"] == arm), None)
    return str(results["reference"] if found is None else found["reference"])


def _paired(results: Results, arm: str, other: str) -> list[float]:
    """Differences of the runs that both have."""
    first, second = (
        {(run["split"], run["seed"]): run["value"] for run in (_find(name, results) or {"by_run": ()})["by_run"]}
        for name in (arm, other)
    )
    return [value - second[key] for key, value in first.items() if key in second]


def _precision(results: Results) -> str:
    entry = next((e for e in results["arms"] if e["arm"] == results["main"]), {})
    signal = next((s for s in entry.get("signals") or () if s["signal"] == "mean_nll"), None)
    if signal is None:
        return ""
    risk = next(risk for coverage, risk in signal["curve"] if coverage >= 0.5)
    return f"{100 * (1 - signal['error']):.1f}, {100 * (1 - risk):.1f}"


def _table(cells: Mapping[str, Results], rows: Sequence[Sequence[str]]) -> str:
    return _markdown([["", *cells], *(row for row in rows if any(row[1:]))])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
