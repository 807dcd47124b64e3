"""Figures of a comparison as SVG: differences, accuracy against cost, sweeps, risk-coverage, reliability, entropies.

Drawn as the figures of a run are (`figures`): for a page as inline elements in the page's colours, for a paper as files
that stand alone.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semievol.compare_format import SIGNAL_TITLES
from semievol.compare_text import GOLD_MARK
from semievol.figures import INK, MODEL_COLOURS, MUTED, PAPER, RULE, canvas, shorten, stack_shares
from semievol.point_labels import label_points
from semievol.report_text import signed

Floats = NDArray[np.float64]

MAIN, REFERENCE, OTHER, FOURTH = (MODEL_COLOURS[m] for m in ("semievol", "sft", "base", "sft_matched"))
"""Colours: of the method, of the reference, of the rest, and one more."""
LINES = ((MAIN, "-"), (REFERENCE, "-"), (FOURTH, "-"), (OTHER, "-"), (MAIN, "--"), (REFERENCE, "--"), (FOURTH, "--"))
"""Colour and dash of the lines of a plot, in order; then again from the start, faded."""
OTHER_MARKERS, GOLD_MARKERS = "s^DvP", "oDs^v"
"""Shapes that tell arms of one colour apart, in order; those of gold arms are open."""
FEW_PANELS = 12
"""With more of them, panels are smaller and stand one more in a row."""
LIGHT = {
    "ink": "#1b1d21",
    "muted": "#626871",
    "rule": "#d9dce1",
    "paper": "#ffffff",
    "base": "#8b9099",
    "sft": "#c77700",
    "sft-matched": "#a8326e",
    "semievol": "#0a66b7",
}
"""The page's colours by daylight, for files that stand alone."""


class Bar(NamedTuple):
    """A value with its interval, all shares. `kind` is main, reference, gold or other."""

    label: str
    value: float
    low: float
    high: float
    kind: str


class CostPoint(NamedTuple):
    """Accuracy of an arm and its seconds a run."""

    label: str
    seconds: float
    value: float
    low: float
    high: float
    kind: str


class SweepLine(NamedTuple):
    """One arm over the values of a key: positions are numbers, or places of categories."""

    label: str
    positions: Sequence[float]
    values: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


class Histogram(NamedTuple):
    """Values of all answers of an arm with their scores."""

    label: str
    values: Floats
    scores: Floats
    kind: str


def draw_forest(name: str, bars: Sequence[Bar], *, x_label: str, title: str) -> str:
    """A line an arm: dot, interval and the numbers; zero is marked. Arms that use gold have open dots."""
    rows = len(bars)
    with canvas(0.56 + 0.27 * rows) as (figure, svg):
        axis = figure.subplots()
        axis.axvline(0, color=MUTED, linewidth=0.9)
        for y, bar in enumerate(bars):
            colour = _colour(bar.kind)
            axis.hlines(y, 100 * bar.low, 100 * bar.high, color=colour, linewidth=1.6)
            axis.plot([100 * bar.value], [y], **_dot(bar.kind))
            axis.annotate(
                signed(bar.value),
                (1.0, y),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
        axis.set_yticks(range(rows), [_short_name(bar.label, 34) for bar in bars])
        axis.tick_params(axis="y", labelcolor=INK)
        axis.set(ylim=(rows - 0.5, -0.5), xlabel=x_label)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x")
        axis.set_axisbelow(True)
        _adjust(figure, left=_label_room([bar.label for bar in bars], 34), right=0.89, bottom=0.46)
    return svg(name, title)


def draw_costs(name: str, points: Sequence[CostPoint], *, y_label: str) -> str:
    """Accuracy against time, which is logarithmic where it spans more than a factor of twenty."""
    seconds = [max(point.seconds, 1e-3) for point in points]
    unit, size = ("s", 1.0) if max(seconds) < 180 else ("min", 60.0) if max(seconds) < 10800 else ("h", 3600.0)
    numbered = len(points) > 7
    height = 3.4 + (0.2 * ((len(points) + 1) // 2) if numbered else 0)
    with canvas(height) as (figure, svg):
        axis = figure.subplots()
        for point, x in zip(points, seconds, strict=True):
            colour = _colour(point.kind)
            axis.vlines(x / size, 100 * point.low, 100 * point.high, color=colour, linewidth=1.0, alpha=0.55)
            axis.plot([x / size], [100 * point.value], **_dot(point.kind))
        if max(seconds) > 20 * min(seconds):
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.xaxis.set_minor_formatter(lambda *_: "")
        axis.set(xlabel=f"time of a run ({unit})", ylabel=y_label)
        axis.margins(x=0.08)
        axis.grid(axis="y")
        axis.set_axisbelow(True)
        bottom = 0.5
        if numbered:
            bottom += 0.2 * ((len(points) + 1) // 2)
            half = (len(points) + 1) // 2
            for place, point in enumerate(points):
                x, y = (0.02, place) if place < half else (0.52, place - half)
                figure.text(
                    x, (bottom - 0.5 - 0.2 * (y + 0.8)) / height, f"{place + 1}  {_short_name(point.label, 28)}"
                )
        _adjust(figure, left=0.12, right=0.97, bottom=bottom)
        texts = [str(i) if numbered else _short_name(point.label, 28) for i, point in enumerate(points, 1)]
        label_points(
            axis,
            [(x / size, 100 * p.value) for p, x in zip(points, seconds, strict=True)],
            texts,
            [(100 * p.low, 100 * p.high) for p in points],
            leader_colour=MUTED,
        )
    return svg(name, f"{y_label} against the time of a run")


def draw_risk_coverage(
    name: str, curves: Mapping[str, Sequence[tuple[float, float]]], *, error: float, y_label: str
) -> str:
    """Share of wrong labels among the surest, one line a signal, and the share among all."""
    with canvas(3.1) as (figure, svg):
        axis = figure.subplots()
        axis.axhline(100 * error, color=MUTED, linewidth=0.9, linestyle=":")
        for (signal, curve), (colour, dash) in zip(curves.items(), LINES, strict=False):
            coverage, risk = 100 * np.array(curve).T
            axis.plot(coverage, risk, color=colour, linestyle=dash, linewidth=1.6, label=SIGNAL_TITLES[signal])
        axis.set(xlim=(0, 101), xlabel="surest share of the pseudo-labels (%)", ylabel=y_label)
        axis.set_ylim(bottom=0)
        axis.grid(axis="y")
        axis.set_axisbelow(True)
        _legend(figure, axis, columns=2)
        _adjust(figure, left=0.12, right=0.97, bottom=0.48, top=0.46)
    return svg(name, "Risk-coverage curves of the selection signals (uses gold)")


def draw_sweep(
    name: str, lines: Sequence[SweepLine], *, x_label: str, y_label: str, ticks: Sequence[str] | None
) -> str:
    """The metric over the values of a key; `ticks` names the places of categories, None draws a number line."""
    columns = 2 if max(len(line.label) for line in lines) <= 22 else 1
    rows = -(-len(lines) // columns)
    places = [x for line in lines for x in line.positions]
    step = 0.012 * (max(places) - min(places)) if ticks is None else min(0.08, 0.8 / len(lines))
    with canvas(3.0 + 0.2 * rows) as (figure, svg):
        axis = figure.subplots()
        for place, line in enumerate(lines):
            colour, dash = LINES[place % len(LINES)]
            x = np.array(line.positions) + step * (place - (len(lines) - 1) / 2)
            axis.vlines(
                x, 100 * np.array(line.lows), 100 * np.array(line.highs), color=colour, linewidth=1.0, alpha=0.6
            )
            style = dash if ticks is None else ""
            axis.plot(
                x,
                100 * np.array(line.values),
                color=colour,
                linestyle=style or "none",
                marker="o",
                markersize=4.5,
                markeredgewidth=0,
                linewidth=1.5,
                alpha=1.0 if place < len(LINES) else 0.5,
                label=_short_name(line.label, 60),
            )
        if min(low for line in lines for low in line.lows) < 0:
            axis.axhline(0, color=MUTED, linewidth=0.9)
        positions = sorted(set(places))
        if ticks is not None:
            axis.set_xticks(range(len(ticks)), [shorten(tick, max(6, 56 // len(ticks))) for tick in ticks])
            axis.set_xlim(-0.5, len(ticks) - 0.5)
        elif 1 < len(positions) <= 8:
            axis.set_xticks(positions, [f"{x:g}" for x in positions])
        axis.set(xlabel=x_label, ylabel=y_label)
        axis.grid(axis="y")
        axis.set_axisbelow(True)
        _legend(figure, axis, columns=columns)
        _adjust(figure, left=0.12, right=0.97, bottom=0.48, top=0.12 + 0.2 * rows)
    return svg(name, f"{y_label} over {x_label}, one line for each arm")


def draw_histograms(name: str, rows: Sequence[Histogram], *, x_label: str) -> str:
    """Small histograms, same axes; the share of wrong answers stands lighter on top."""
    edges = np.linspace(0.0, max(1e-3, float(np.quantile(np.concatenate([r.values for r in rows]), 0.995))), 26)
    stacks = [stack_shares(row.values, row.scores, edges) for row in rows]
    top = max(float((right + wrong).max()) for right, wrong in stacks) or 1.0
    small = len(rows) > FEW_PANELS
    columns, line_height = (3, 1.0) if small else (2, 0.85)
    n_lines = -(-len(rows) // columns)
    height = 0.5 + line_height * n_lines
    with canvas(height) as (figure, svg):
        axes = figure.subplots(n_lines, columns, sharex=True, sharey=True, squeeze=False)
        for axis, row, (right, wrong) in zip(axes.ravel(), rows, stacks, strict=False):
            colour = _colour(row.kind)
            axis.stairs(right, edges, fill=True, color=colour)
            axis.stairs(right + wrong, edges, baseline=right, fill=True, color=colour, alpha=0.35)
            axis.set(xlim=(edges[0], edges[-1]), ylim=(0, top * 1.02))
            mean = f"mean {row.values.mean():.2f}"
            if small:
                _caption(axis, f"{_short_name(row.label, 23)}\n{mean}", size=9)
            else:
                _caption(axis, f"{_short_name(row.label, 18)}, {mean}")
        for axis in axes.ravel():
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
        _hide_empty_panels(axes, len(rows))
        figure.supxlabel(x_label, fontsize=10.5, color=MUTED, y=0.04 / height)
        _adjust(figure, left=0.03, right=0.97, bottom=0.46, top=0.38 if small else 0.24)
        figure.subplots_adjust(hspace=0.75 if small else 0.5, wspace=0.1)
    return svg(name, f"Histograms of {x_label}, one for each arm")


def draw_reliability(name: str, rows: Sequence[tuple[str, Sequence[Mapping[str, float]], str]], *, y_label: str) -> str:
    """The metric against confidence in bins of equal mass, one square for each (label, bins, kind)."""
    small = len(rows) > FEW_PANELS
    columns, line_height = (4, 1.4) if small else (3, 1.62)
    n_lines = -(-len(rows) // columns)
    height = 0.5 + line_height * n_lines
    with canvas(height) as (figure, svg):
        axes = figure.subplots(n_lines, columns, sharex=True, sharey=True, squeeze=False)
        for axis, (label, bins, kind) in zip(axes.ravel(), rows, strict=False):
            axis.plot([0, 100], [0, 100], color=RULE, linewidth=1.0)
            x, y = [100 * b["confidence"] for b in bins], [100 * b["accuracy"] for b in bins]
            size = 2.8 if small else 3.5
            axis.plot(x, y, "o-", color=_colour(kind), markersize=size, markeredgewidth=0, linewidth=1.2)
            axis.set(xlim=(-3, 103), ylim=(-3, 103), xticks=(0, 50, 100), yticks=(0, 50, 100))
            if small:
                _caption(axis, _two_lines(label, 16), size=9)
            else:
                _caption(axis, _short_name(label, 16))
        _hide_empty_panels(axes, len(rows))
        figure.supxlabel("confidence (%)", fontsize=10.5, color=MUTED, y=0.03 / height)
        figure.supylabel(y_label, fontsize=10.5, color=MUTED, x=0.005)
        _adjust(figure, left=0.13, right=0.97, bottom=0.46, top=0.38 if small else 0.24)
        figure.subplots_adjust(hspace=0.5 if small else 0.32, wspace=0.18)
    return svg(name, "Reliability diagrams, one for each arm")


def draw_groups(name: str, groups: Sequence[str], bars: Mapping[str, Sequence[Bar | None]], *, x_label: str) -> str:
    """The metric by group, a dot and its interval for each of a few arms; arms of one kind differ by their shapes."""
    gap = 0.72 / max(1, len(bars))
    height = 0.62 + len(groups) * (0.15 + 0.125 * len(bars))
    with canvas(height + 0.2 * ((len(bars) + 1) // 2)) as (figure, svg):
        axis = figure.subplots()
        styles = _dots([next((bar.kind for bar in values if bar), "other") for values in bars.values()])
        for place, ((label, values), style) in enumerate(zip(bars.items(), styles, strict=True)):
            for row, bar in enumerate(values):
                if bar is None:
                    continue
                y = row + (place - (len(bars) - 1) / 2) * gap
                axis.hlines(y, 100 * bar.low, 100 * bar.high, color=style["color"], linewidth=1.2, alpha=0.7)
                axis.plot([100 * bar.value], [y], **style)
            axis.plot([], [], **style, label=_short_name(label, 30))
        for i in range(1, len(groups)):
            axis.axhline(i - 0.5, color=RULE, linewidth=0.5)
        axis.set_yticks(range(len(groups)), [shorten(group, 22) for group in groups])
        axis.tick_params(axis="y", labelcolor=INK)
        axis.set(ylim=(len(groups) - 0.5, -0.5), xlabel=x_label)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x")
        axis.set_axisbelow(True)
        _legend(figure, axis, columns=2)
        _adjust(figure, left=_label_room(groups, 22), right=0.97, bottom=0.46, top=0.12 + 0.2 * ((len(bars) + 1) // 2))
    return svg(name, f"{x_label} by group and arm")


def standalone(svg: str) -> str:
    """An SVG file of an inline figure: with its namespace, a paper and fixed colours."""
    for name, colour in LIGHT.items():
        svg = svg.replace(f"var(--{name})", colour)
    box = re.search(r'viewBox="([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    head = svg[: svg.index(">")].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head += f' width="{box[3]}" height="{box[4]}" font-family="Helvetica, Arial, sans-serif"'
    return f'{head}><rect width="100%" height="100%" fill="#ffffff"/>{svg[svg.index(">") + 1 :]}\n'


def _short_name(label: str, most: int) -> str:
    """An arm's label cut to `most` characters; that it uses gold is never cut away."""
    name, mark, _ = label.partition(f" ({GOLD_MARK})")
    if len(label) <= most or not mark:
        return shorten(label, most)
    return f"{shorten(name, most - 7)} (gold)"


def _colour(kind: str) -> str:
    return {"main": MAIN, "reference": REFERENCE, "gold": FOURTH}.get(kind, OTHER)


def _dot(kind: str) -> dict[str, Any]:
    colour = _colour(kind)
    face = PAPER if kind == "gold" else colour
    return {
        "marker": "o",
        "linestyle": "none",
        "color": colour,
        "markersize": 6,
        "markerfacecolor": face,
        "markeredgecolor": colour,
        "markeredgewidth": 1.4,
    }


def _dots(kinds: Sequence[str]) -> list[dict[str, Any]]:
    """A small dot for each arm in the colour of its kind; shapes tell arms of one kind apart."""
    seen: Counter[str] = Counter()
    dots = []
    for kind in kinds:
        shapes = {"other": OTHER_MARKERS, "gold": GOLD_MARKERS}.get(kind, "o")
        dots.append(
            _dot(kind) | {"marker": shapes[seen[kind] % len(shapes)], "markersize": 4.2, "markeredgewidth": 1.1}
        )
        seen[kind] += 1
    return dots


def _two_lines(label: str, most: int) -> str:
    """An arm's label on up to two lines of `most` characters; that it uses gold is never cut away."""
    name, mark, _ = label.partition(f" ({GOLD_MARK})")
    if mark:
        return f"{shorten(name, most)}\n({GOLD_MARK})"
    first, *rest = textwrap.wrap(name, most, break_on_hyphens=False) or [""]
    return "\n".join([first, shorten(" ".join(rest), most)] if rest else [first])


def _hide_empty_panels(axes: Any, n_panels: int) -> None:
    """Hide the panels that the last line has too many; those above get the numbers of the axis."""
    for axis in axes.ravel()[n_panels:]:
        axis.set_visible(False)
        spec = axis.get_subplotspec()
        if spec.rowspan.start:
            axes[spec.rowspan.start - 1, spec.colspan.start].tick_params(labelbottom=True)


def _caption(axis: Any, text: str, *, size: float = 10) -> None:
    axis.annotate(
        text, (0, 1.0), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", va="bottom", fontsize=size
    )


def _legend(figure: Any, axis: Any, *, columns: int) -> None:
    """At the top, where the margins leave room for it."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.1, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=10,
        borderaxespad=0.1,
        labelspacing=0.25,
        handlelength=1.8,
        columnspacing=1.5,
    )


def _label_room(labels: Sequence[str], most: int) -> float:
    """Share of the width that tick labels need."""
    longest = max(len(shorten(label, most)) for label in labels)
    return min(0.46, 0.04 + 0.0165 * longest)


def _adjust(figure: Any, *, left: float, right: float, bottom: float, top: float = 0.08) -> None:
    """Margins: shares of the width, inches of the height."""
    height = figure.get_figheight()
    figure.subplots_adjust(left=left, right=right, bottom=bottom / height, top=1 - top / height)
