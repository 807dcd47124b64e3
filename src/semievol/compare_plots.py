"""Which figures a comparison has, and the values they draw."""

from collections.abc import Mapping, Sequence
from typing import Any

from semievol import compare_figures
from semievol.compare_details import scored_values
from semievol.compare_figures import Bar, CostPoint, Histogram, SweepLine
from semievol.compare_load import ComparisonData, setting_text, value_text
from semievol.compare_text import KEY_TITLES, NOMINAL_KEYS, against, arm_label, own_controls
from semievol.report_text import GRADED_METRICS, METRIC_NAMES

Figures = dict[str, str]
"""Inline SVG by name, in the order of the page."""

MOST_GROUPED = 4
"""Arms in the figure of groups."""


def draw_figures(data: ComparisonData, results: Mapping[str, Any]) -> Figures:
    """Every figure that there are values for."""
    measured = [entry for entry in results["arms"] if entry["value"] is not None]
    y_label = f"{METRIC_NAMES[results['metric']]} (%)"
    found = {}
    for number, key in enumerate(results["sweep"], 1):
        found[f"sweep_{number}"] = _sweep(f"sweep_{number}", key, measured, results, y_label)
        differences = [{**d, "value": d["difference"]} for d in results["differences"]]
        difference_label = _axis_label(results)
        found[f"sweep_difference_{number}"] = _sweep(
            f"sweep_difference_{number}", key, differences, results, difference_label
        )
    if not results["sweep"]:  # a panel or a dot for each point of a sweep would say nothing
        found |= {
            "forest": _forest(results),
            "cost": _costs(measured, results, y_label),
            "parts": _parts(results),
            "reliability": _reliability(measured, results, y_label),
            "entropy": _entropy(data, results),
            "groups": _groups(results, y_label),
        }
    found["risk_coverage"] = _risk_coverage(results)
    return {name: svg for name, svg in found.items() if svg}


def arm_kind(entry: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """main, reference, gold or other: what gives an arm its colour."""
    if entry["uses_gold"]:
        return "gold"
    return {results["reference"]: "reference", results["main"]: "main"}.get(entry["arm"], "other")


def _forest(results: Mapping[str, Any]) -> str:
    found = results["differences"]
    if not found:
        return ""
    bars = [_difference_bar(d, d["arm"], results) for d in found]
    title = f"Paired differences, points against {against(results)}"
    return compare_figures.draw_forest("forest", bars, x_label=_axis_label(results), title=title)


def _axis_label(results: Mapping[str, Any]) -> str:
    """What differences are from, as far as an axis has room for it."""
    return f"points against {'the control' if own_controls(results) else results['reference_label']}"


def _parts(results: Mapping[str, Any]) -> str:
    found = results["parts"]
    if not found:
        return ""
    bars = [_difference_bar(d, d["reference"], results) for d in found]
    label = f"points that {results['main_label']} has more"
    return compare_figures.draw_forest("parts", bars, x_label=label, title="What the parts are worth")


def _difference_bar(difference: Mapping[str, Any], arm: str, results: Mapping[str, Any]) -> Bar:
    entry = next(
        (e for e in results["arms"] if e["arm"] == arm and e["setting"] == difference["setting"]),
        next(e for e in results["arms"] if e["arm"] == arm),
    )
    kind = arm_kind(entry, results)
    return Bar(entry["label"], difference["difference"], difference["ci_low"], difference["ci_high"], kind)


def _costs(measured: Sequence[Mapping[str, Any]], results: Mapping[str, Any], y_label: str) -> str:
    points = [
        CostPoint(e["label"], e["cost"]["seconds"], e["value"], e["ci_low"], e["ci_high"], arm_kind(e, results))
        for e in measured
        if e["cost"] is not None
    ]
    return compare_figures.draw_costs("cost", points, y_label=y_label) if len(points) > 1 else ""


def _sweep(name: str, key: str, entries: Sequence[Mapping[str, Any]], results: Mapping[str, Any], y_label: str) -> str:
    """One line for each arm and each combination of the other keys; the method first, then the reference."""
    values = results["sweep"][key]
    texts = [value_text(value) for value in values]
    is_number = key not in NOMINAL_KEYS and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    gold = {entry["arm"]: entry["uses_gold"] for entry in results["arms"]}
    lines: dict[tuple[str, str], list[tuple[float, Mapping[str, Any]]]] = {}
    for entry in entries:
        if key in entry["setting"]:
            value = entry["setting"][key]
            rest = setting_text({k: v for k, v in entry["setting"].items() if k != key})
            place = float(value) if is_number else float(texts.index(value_text(value)))
            lines.setdefault((entry["arm"], rest), []).append((place, entry))
    order = {results["main"]: 0, results["reference"]: 1}
    drawn = []
    for (arm, rest), found in sorted(lines.items(), key=lambda line: order.get(line[0][0], 2)):
        found.sort(key=lambda pair: pair[0])
        label = arm_label(arm, uses_gold=gold[arm])
        drawn.append(
            SweepLine(
                f"{label}, {rest}" if rest else label,
                [place for place, _ in found],
                [e["value"] for _, e in found],
                [e["ci_low"] for _, e in found],
                [e["ci_high"] for _, e in found],
            )
        )
    if not drawn:
        return ""
    ticks = None if is_number else texts
    return compare_figures.draw_sweep(name, drawn, x_label=KEY_TITLES.get(key, key), y_label=y_label, ticks=ticks)


def _risk_coverage(results: Mapping[str, Any]) -> str:
    rated = [entry for entry in results["arms"] if entry["signals"]]
    if not rated:
        return ""
    entry = next((e for e in rated if e["arm"] == results["main"]), rated[0])
    curves = {signal["signal"]: signal["curve"] for signal in entry["signals"]}
    y_label = "below 100 (%)" if results["metric"] in GRADED_METRICS else "wrong (%)"
    error = entry["signals"][0]["error"]
    return compare_figures.draw_risk_coverage("risk_coverage", curves, error=error, y_label=y_label)


def _reliability(measured: Sequence[Mapping[str, Any]], results: Mapping[str, Any], y_label: str) -> str:
    """A panel for each arm: the method, the reference, then the others in their order."""
    rows = [(e["label"], e["calibration"]["bins"], arm_kind(e, results)) for e in measured if e["calibration"]]
    rows.sort(key=lambda row: _rank(row[2]))
    return compare_figures.draw_reliability("reliability", rows, y_label=y_label) if rows else ""


def _entropy(data: ComparisonData, results: Mapping[str, Any]) -> str:
    """Of the answer distribution, or where answers are open of the answer alone: its mean NLL."""
    for field, x_label in (("entropy", "entropy (nats)"), ("mean_nll", "mean NLL (nats per token)")):
        rows = []
        for cell, entry in zip(data.cells, results["arms"], strict=True):
            found = scored_values(cell, field)
            if found is not None:
                rows.append(Histogram(entry["label"], *found, arm_kind(entry, results)))
        if rows:
            rows.sort(key=lambda row: _rank(row.kind))
            return compare_figures.draw_histograms("entropy", rows, x_label=x_label)
    return ""


def _rank(kind: str) -> int:
    """Place of a kind where the method stands first, then the reference, then all others."""
    return {"main": 0, "reference": 1}.get(kind, 2)


def _groups(results: Mapping[str, Any], y_label: str) -> str:
    """Of the reference, the method, and those that follow in the table."""
    if not results["groups"]:
        return ""
    arms = list(dict.fromkeys(line["arm"] for line in results["groups"]))
    first = [arm for arm in (results["main"], results["reference"]) if arm in arms]
    chosen = list(dict.fromkeys([*first, *arms]))[:MOST_GROUPED]
    groups = list(dict.fromkeys(line["group"] for line in results["groups"]))
    gold = {entry["arm"]: entry["uses_gold"] for entry in results["arms"]}
    kinds = {entry["arm"]: arm_kind(entry, results) for entry in results["arms"]}
    found = {(line["arm"], line["group"]): line for line in results["groups"]}
    bars = {
        arm_label(arm, uses_gold=gold[arm]): [
            None if line is None else Bar("", line["value"], line["ci_low"], line["ci_high"], kinds[arm])
            for line in (found.get((arm, group)) for group in groups)
        ]
        for arm in chosen
    }
    return compare_figures.draw_groups("groups", groups, bars, x_label=y_label)
