"""Places the labels of the points of a plot, so that each is seen to belong to its point; the same on each call."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

DOT_ROOM = 4.0
"""Points around the middle of a dot that belong to the dot."""
BESIDE = 6.0
"""Points between the middle of a dot and a label that needs no leader."""
Box = tuple[float, float, float, float]
"""left, bottom, right, top in points."""


class _Place(NamedTuple):
    """Where a label could stand. `leader` is the line from its dot to it, None where it stands beside its dot."""

    box: Box
    leader: Box | None
    side: str
    cost: float


def label_points(
    axis: Any,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    intervals: Sequence[tuple[float, float]] | None = None,
    *,
    leader_colour: str,
) -> None:
    """Write each text near its point, joined to it by a leader wherever it could be taken for another's.

    `intervals` are the upright lines through the points (low, high): texts stand on them only where they must.
    """
    axis.autoscale_view()  # else the limits are those of an empty plot until it is drawn
    dots, lines = _in_points(axis, points), []
    if intervals is not None:
        lows, highs = ([(x, ends[i]) for (x, _), ends in zip(points, intervals, strict=True)] for i in (0, 1))
        lines = [(*low, *high) for low, high in zip(_in_points(axis, lows), _in_points(axis, highs), strict=True)]
    frame = _extent(axis)
    labels = [
        axis.annotate(text, point, xytext=(0, 0), textcoords="offset points", va="bottom")
        for point, text in zip(points, texts, strict=True)
    ]
    options = [_possible_places(i, dots, _extent(label), frame, lines) for i, label in enumerate(labels)]
    for label, (x, y), place in zip(labels, dots, _choose_places(options), strict=True):
        left, bottom, right, _ = place.box
        label.set_ha(place.side)
        label.xyann = ({"left": left, "right": right, "center": (left + right) / 2}[place.side] - x, bottom - y)
        if place.leader is not None:
            ends = np.reshape(place.leader, (2, 2)) * axis.figure.dpi / 72
            ends = axis.transData.inverted().transform(ends)
            axis.plot(*ends.T, color=leader_colour, linewidth=0.8, zorder=1.5, scalex=False, scaley=False)


def _in_points(axis: Any, values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where values of a plot lie in the figure."""
    return [(float(x), float(y)) for x, y in axis.transData.transform(values) * 72 / axis.figure.dpi]


def _extent(artist: Any) -> Box:
    left, bottom, right, top = (float(edge) * 72 / artist.figure.dpi for edge in artist.get_window_extent().extents)
    return (left, bottom, right, top)


def _possible_places(
    own: int, dots: Sequence[tuple[float, float]], text: Box, frame: Box, lines: Sequence[Box]
) -> list[_Place]:
    """Places of a label around its dot, with what each costs whatever the other labels do; the cheapest first."""
    x, y = dots[own]
    size = (text[2] - text[0], text[3] - text[1])
    others = [dot for i, dot in enumerate(dots) if i != own]
    found = []
    for gap in (BESIDE - 0.5, 12, 16, 20, 25, 30, 38, 46, 56, 68, 82):
        for step in range(24):
            right, up = math.cos(step * math.pi / 12), math.sin(step * math.pi / 12)
            middle = (x + right * gap + _clip(2 * right) * size[0] / 2, y + up * gap + _clip(2 * up) * size[1] / 2)
            box = _box_around(middle, size)
            distance = _distance(box, (x, y))
            nearest = min((_distance(box, dot) for dot in others), default=math.inf)
            end = (_clip(x, box[0], box[2]), _clip(y, box[1], box[3]))
            leader = None if distance <= BESIDE and nearest >= distance + 3 else (x, y, *end)
            outside = max(0.0, frame[0] - box[0], box[2] - frame[2], frame[1] - box[1], box[3] - frame[3])
            cost = 20 * outside + sum(_overlap(box, _box_around(dot, (2 * DOT_ROOM, 2 * DOT_ROOM))) for dot in dots)
            cost += 3 * sum(_crosses_box(line, box) for line in set(lines)) + {0: 0.0, 12: 0.5}.get(step, 1.0)
            if leader is not None:
                cost += 6 + 0.5 * distance + 2 * max(0.0, 10 - nearest)
                cost += 120 * (abs(end[0] - x) < 0.3 * abs(end[1] - y))  # it would lie on the interval
                cost += sum(40 for dot in others if _reach(leader, dot) < min(DOT_ROOM, 0.95 * math.dist(dot, (x, y))))
            along = (end[0] - box[0]) / size[0]  # the side towards the dot stays, however wide the reader's font is
            side = "left" if along < 1 / 3 else "right" if along > 2 / 3 else "center"
            found.append(_Place(box, leader, side, cost))
    return sorted(found, key=lambda place: place.cost)


def _choose_places(options: Sequence[Sequence[_Place]]) -> list[_Place]:
    """One of the places of each label, so that they are cheap and in nobody's way: the best of a few searches."""
    numbers = list(range(len(options)))
    tightest = sorted(numbers, key=lambda i: -options[i][0].cost)
    found = [_search_places(options, order) for order in (numbers, numbers[::-1], tightest, tightest[::-1])]
    return min(found, key=_total_cost)


def _search_places(options: Sequence[Sequence[_Place]], order: Sequence[int]) -> list[_Place]:
    """Choose one place after the other, then again with all others known, until none changes."""
    chosen: dict[int, _Place] = {}
    for _ in range(8):
        before = dict(chosen)
        for i in order:
            chosen[i] = _cheapest(options[i], [place for j, place in chosen.items() if j != i])
        if chosen == before:
            break
    return [chosen[i] for i in range(len(options))]


def _cheapest(places: Sequence[_Place], rest: Sequence[_Place]) -> _Place:
    """The place that costs least beside the chosen places of the other labels; `places` come cheapest first."""
    best, least = places[0], math.inf
    for place in places:
        if place.cost >= least:
            break
        cost = place.cost + sum(_conflict(place, other) for other in rest)
        if cost < least:
            best, least = place, cost
    return best


def _total_cost(places: Sequence[_Place]) -> float:
    pairs = ((a, b) for i, a in enumerate(places) for b in places[:i])
    return sum(place.cost for place in places) + sum(_conflict(a, b) for a, b in pairs)


def _conflict(a: _Place, b: _Place) -> float:
    """What two labels with their leaders cost by being in each other's way."""
    cost = 2 * _overlap(_grown(a.box, 1.5), _grown(b.box, 1.5))
    for place, other in ((a, b), (b, a)):
        if place.leader is not None and _crosses_box(place.leader, other.box):
            cost += 60
    if a.leader is not None and b.leader is not None and _cross(a.leader, b.leader):
        cost += 60
    return cost


def _clip(value: float, low: float = -1.0, high: float = 1.0) -> float:
    return min(max(value, low), high)


def _box_around(middle: tuple[float, float], size: tuple[float, float]) -> Box:
    (x, y), (width, height) = middle, size
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _grown(box: Box, room: float) -> Box:
    return (box[0] - room, box[1] - room, box[2] + room, box[3] + room)


def _distance(box: Box, dot: tuple[float, float]) -> float:
    """From the middle of a dot to the nearest edge of a box; 0 inside."""
    return math.hypot(dot[0] - _clip(dot[0], box[0], box[2]), dot[1] - _clip(dot[1], box[1], box[3]))


def _reach(line: Box, dot: tuple[float, float]) -> float:
    """From the middle of a dot to a line (x, y, x, y)."""
    dx, dy = line[2] - line[0], line[3] - line[1]
    along = ((dot[0] - line[0]) * dx + (dot[1] - line[1]) * dy) / max(dx * dx + dy * dy, 1e-9)
    along = _clip(along, 0.0, 1.0)
    return math.hypot(dot[0] - line[0] - along * dx, dot[1] - line[1] - along * dy)


def _cross(a: Box, b: Box) -> bool:
    """Whether two lines (x, y, x, y) cross; those that start at the same dot do not."""

    def side(line: Box, x: float, y: float) -> float:
        return (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0])

    return side(a, *b[:2]) * side(a, *b[2:]) < 0 and side(b, *a[:2]) * side(b, *a[2:]) < 0


def _crosses_box(line: Box, box: Box) -> bool:
    """Whether a line (x, y, x, y) runs through a box or ends in it."""
    left, bottom, right, top = box
    diagonals = ((left, bottom, right, top), (left, top, right, bottom))
    return _distance(box, line[2:]) == 0 or any(_cross(line, diagonal) for diagonal in diagonals)


def _overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
