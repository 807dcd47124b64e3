"""Figures of the report as inline SVG.

Drawn small, so that a phone shows them at full size and a desktop beside each other. Lines are drawn in placeholder
colours that become CSS variables of the page, which therefore decides light and dark. Text stays text, in the page's
font. The same input gives the same bytes: ids come from the figure's name, and no date is written.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semievol.audit import MODELS

Floats = NDArray[np.float64]

MODEL_LABELS = {
    "base": "Base",
    "sft": "SFT",
    "sft_matched": "SFT, matched steps",
    "semievol": "SemiEvol",
}
WIDTH = 5.0
"""Inches, at 72 units an inch."""

# Placeholders: colours that nothing else draws in, each replaced by a CSS variable.
INK, MUTED, RULE, PAPER = "#010203", "#020304", "#030405", "#040506"
MODEL_COLOURS = {"base": "#0a0b01", "sft": "#0a0b02", "sft_matched": "#0a0b03", "semievol": "#0a0b04"}
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    colour: f"--{model.replace('_', '-')}" for model, colour in MODEL_COLOURS.items()
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.solid_capstyle": "butt",
}


class Scored(NamedTuple):
    """A value of each test row under one model, and the row's score."""

    model: str
    values: Floats
    scores: Floats


class KeptPoint(NamedTuple):
    """What selection kept in one round: share of the labels, and how many of those are right, with its interval."""

    round: int
    coverage: float
    precision: float
    ci_low: float
    ci_high: float


class GroupValue(NamedTuple):
    """The metric of one model on the rows of one group."""

    model: str
    group: str
    value: float
    ci_low: float
    ci_high: float


class LossCurve(NamedTuple):
    """Training losses of one training. `model` gives the colour; earlier rounds are faded."""

    model: str
    steps: Sequence[float]
    losses: Sequence[float]
    faded: bool


def draw_histograms(name: str, rows: Sequence[Scored], *, x_label: str, x_range: tuple[float, float]) -> str:
    """One histogram a model under each other, same axes; the share of wrong answers stands lighter on top.

    Shares are of the model's own rows, so that models compare.
    """
    edges = np.linspace(*x_range, 31)
    stacks = [stack_shares(row.values, row.scores, edges) for row in rows]
    top = max(float((right + wrong).max()) for right, wrong in stacks) or 1.0
    with canvas(0.74 * len(rows) + 0.62) as (figure, svg):
        axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        for axis, row, (right, wrong) in zip(axes, rows, stacks, strict=True):
            colour = MODEL_COLOURS[row.model]
            axis.stairs(right, edges, fill=True, color=colour)
            axis.stairs(right + wrong, edges, baseline=right, fill=True, color=colour, alpha=0.35)
            axis.set_ylim(0, top * 1.02)
            axis.set_xlim(*x_range)
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            axis.tick_params(axis="x", length=0 if axis is not axes[-1] else 3)
            axis.annotate(
                f"{MODEL_LABELS[row.model]}, mean {row.values.mean():.2f}",
                (0, 1.0),
                xycoords="axes fraction",
                xytext=(0, 2),
                textcoords="offset points",
                va="bottom",
            )
        axes[-1].set_xlabel(x_label)
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.035, right=0.965, top=1 - 0.22 / height, bottom=0.46 / height, hspace=0.5)
    return svg(name, f"Histograms of {x_label} on the test rows, one for each model")


def draw_precision_curves(
    name: str, curves: Mapping[int, Sequence[Mapping[str, float]]], kept: Sequence[KeptPoint]
) -> str:
    """Precision of the surest share of the pseudo-labels against that share, with what was kept marked."""
    with canvas(3.1) as (figure, svg):
        axis = figure.subplots()
        lows = [point["precision"] for points in curves.values() for point in points if point["coverage"] >= 0.05]
        lows += [point.ci_low for point in kept]
        for number, points in curves.items():
            alpha = 1.0 if len(curves) == 1 else 0.35 + 0.65 * number / max(curves)
            axis.plot(
                [100 * p["coverage"] for p in points],
                [100 * p["precision"] for p in points],
                color=MODEL_COLOURS["semievol"],
                linewidth=1.6,
                alpha=alpha,
            )
        for point in kept:
            x = 100 * point.coverage
            axis.vlines(x, 100 * point.ci_low, 100 * point.ci_high, color=INK, linewidth=1.2)
            axis.plot([x], [100 * point.precision], "o", color=INK, markersize=5.5, markeredgecolor=PAPER)
            label = "kept" if len(kept) == 1 else f"round {point.round}"
            right = x <= 80
            offset, side = (7 if right else -7, 7), "left" if right else "right"
            axis.annotate(label, (x, 100 * point.precision), xytext=offset, textcoords="offset points", ha=side)
        floor = 100 * max(0.0, min([*lows, 1.0]) - 0.05)
        axis.set(xlim=(0, 101), ylim=(floor, 101.5), xlabel="surest share of the pseudo-labels (%)", ylabel="right (%)")
        axis.grid(axis="y")
        axis.set_axisbelow(True)
        figure.subplots_adjust(left=0.12, right=0.98, top=0.93, bottom=0.16)
    return svg(name, "Precision of the pseudo-labels against the share that is kept")


def draw_groups(name: str, values: Sequence[GroupValue], *, x_label: str) -> str:
    """The metric by group, a dot and its interval for each model; groups in the order given."""
    groups = list(dict.fromkeys(value.group for value in values))
    models = [model for model in MODELS if any(value.model == model for value in values)]
    gap = 0.72 / max(1, len(models))
    with canvas(0.62 + len(groups) * (0.15 + 0.125 * len(models))) as (figure, svg):
        axis = figure.subplots()
        for value in values:
            y = groups.index(value.group) + (models.index(value.model) - (len(models) - 1) / 2) * gap
            colour = MODEL_COLOURS[value.model]
            axis.hlines(y, 100 * value.ci_low, 100 * value.ci_high, color=colour, linewidth=1.2, alpha=0.7)
            axis.plot([100 * value.value], [y], "o", color=colour, markersize=4.2, markeredgewidth=0)
        for i in range(1, len(groups)):
            axis.axhline(i - 0.5, color=RULE, linewidth=0.5)
        axis.set_yticks(range(len(groups)), [shorten(group, 22) for group in groups])
        axis.tick_params(axis="y", labelcolor=INK)
        axis.set(ylim=(len(groups) - 0.5, -0.5), xlabel=x_label)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x")
        axis.set_axisbelow(True)
        height = figure.get_figheight()
        longest = max(len(shorten(group, 22)) for group in groups)
        figure.subplots_adjust(
            left=min(0.42, 0.04 + 0.0175 * longest), right=0.97, top=1 - 0.06 / height, bottom=0.46 / height
        )
    return svg(name, f"{x_label} by group and model")


def draw_losses(name: str, curves: Sequence[LossCurve]) -> str:
    """Mean training loss against the optimiser step."""
    with canvas(2.9) as (figure, svg):
        axis = figure.subplots()
        for curve in curves:
            colour = MODEL_COLOURS[curve.model]
            marker, alpha = "o" if len(curve.steps) < 3 else "", 0.4 if curve.faded else 1.0
            axis.plot(curve.steps, curve.losses, marker=marker, color=colour, linewidth=1.5, markersize=4, alpha=alpha)
        axis.set(xlabel="optimiser step", ylabel="loss (nats per token)")
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        axis.grid(axis="y")
        axis.set_axisbelow(True)
        figure.subplots_adjust(left=0.12, right=0.97, top=0.97, bottom=0.17)
    return svg(name, "Training loss against the optimiser step, one line for each training")


class _Svg:
    """Renders its figure when called; what is drawn has to be there by then."""

    def __init__(self, figure: Any) -> None:
        self._figure = figure
        self._text = ""

    def render(self) -> None:
        stream = io.StringIO()
        self._figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        self._text = stream.getvalue()

    def __call__(self, name: str, title: str) -> str:
        return _inline(self._text, name, title)


@contextmanager
def canvas(height: float) -> Iterator[tuple[Any, _Svg]]:
    """A figure in the report's style, rendered at the end; settings of the user's matplotlib do not count."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Fonts without a glyph only make the measured width a guess: the browser draws the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": "semievol"})
        figure = Figure(figsize=(WIDTH, height), dpi=72)
        svg = _Svg(figure)
        yield figure, svg
        svg.render()


def _inline(text: str, name: str, title: str) -> str:
    """Matplotlib's SVG document as an element of a page: no prolog, ids under `name`, colours as variables."""
    body = text[text.index("<svg") :].strip()
    body = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', body)
    body = body[body.index(">") + 1 :]
    used = set(re.findall(r"url\(#([^)]+)\)", body)) | set(re.findall(r'href="#([^"]+)"', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', body)
    body = re.sub(r"font: [^;\"]*?([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"font-family: [^;\"]*;?\s*", "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"\n\s*", "\n", body)
    assert box is not None
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{_escape(title)}">{body}'


def stack_shares(values: Floats, scores: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Shares of the rows in each bin: with the score as weight, and the rest."""
    inside = np.clip(values, edges[0], edges[-1])
    right, _ = np.histogram(inside, edges, weights=scores)
    wrong, _ = np.histogram(inside, edges, weights=1 - scores)
    return right / len(inside), wrong / len(inside)


def shorten(text: str, most: int) -> str:
    """Text on one line, cut to `most` characters."""
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= most else one_line[: most - 1] + "…"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
