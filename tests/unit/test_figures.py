import re
from xml.etree import ElementTree

import numpy as np
import pytest

from semievol import compare_figures
from semievol.compare_figures import CostPoint, Histogram, _dots, _two_lines, draw_costs
from semievol.compare_plots import _groups, _reliability
from semievol.compare_text import ARM_LABELS, PARTS, arm_label
from semievol.figures import (
    GroupValue,
    KeptPoint,
    LossCurve,
    Scored,
    canvas,
    draw_groups,
    draw_histograms,
    draw_losses,
    draw_precision_curves,
)
from semievol.point_labels import label_points

CURVE = [{"coverage": c, "precision": 1 - c / 4, "mean_nll": c} for c in (0.1, 0.5, 1.0)]
KEPT = KeptPoint(1, 0.5, 0.9, 0.8, 0.95)
LOSSES = LossCurve("sft", (1, 2, 3), (2.0, 1.0, 0.5), faded=False)


def scored(model: str, *values: float) -> Scored:
    return Scored(model, np.array(values), np.array([1.0] * len(values)))


def draw(kind: str, name: str = "figure", group: str = "a") -> str:
    return {
        "histograms": lambda: draw_histograms(
            name, [scored("base", 0.1, 0.2), scored("semievol", 0.3)], x_label="x", x_range=(0, 1)
        ),
        "precision": lambda: draw_precision_curves(name, {1: CURVE, 2: CURVE}, [KEPT]),
        "groups": lambda: draw_groups(name, [GroupValue("sft", group, 0.5, 0.4, 0.6)], x_label="accuracy (%)"),
        "losses": lambda: draw_losses(name, [LOSSES, LossCurve("semievol", (1,), (1.0,), faded=True)]),
    }[kind]()


KINDS = ("histograms", "precision", "groups", "losses")


@pytest.mark.parametrize("kind", KINDS)
def test_figure_is_the_same_twice(kind):
    assert draw(kind) == draw(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_figure_stands_alone_and_takes_the_pages_colours(kind):
    svg = draw(kind)
    ElementTree.fromstring(svg)
    assert "http" not in svg
    assert "DejaVu" not in svg
    assert "var(--" in svg
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", svg)
    assert len(svg) < 60_000


@pytest.mark.parametrize("kind", KINDS)
def test_two_figures_share_no_id(kind):
    first, second = (set(re.findall(r' id="([^"]+)"', draw(kind, name))) for name in ("one", "two"))
    assert not first & second


@pytest.mark.parametrize("kind", KINDS)
def test_references_of_a_figure_lead_to_its_own_ids(kind):
    svg = draw(kind)
    ids = set(re.findall(r' id="([^"]+)"', svg))
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    assert used == ids


@pytest.mark.parametrize("group", ["<script>x</script>", "a & b", '"q"', "$x^2$", "日本語", "line\nbreak"])
def test_group_names_are_text_and_nothing_else(group):
    texts = [t.text for t in ElementTree.fromstring(draw("groups", group=group)).iter() if t.tag.endswith("text")]
    assert " ".join(group.split()) in texts


def test_long_group_names_are_cut():
    assert "x" * 21 + "…" in draw("groups", group="x" * 500)


def test_histogram_names_model_and_mean():
    svg = draw_histograms("h", [scored("base", 1.0, 2.0)], x_label="x", x_range=(0, 2))
    assert "Base, mean 1.50" in svg


def test_histogram_of_one_value_can_be_drawn():
    assert "<svg" in draw_histograms("h", [scored("base", 0.0)], x_label="x", x_range=(0, 1e-3))


def test_settings_of_the_users_matplotlib_do_not_count():
    import matplotlib

    plain = draw("losses")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert draw("losses") == plain


def place_labels(points: list, texts: list[str]) -> tuple[list, list, list, object]:
    """Dots, boxes of the labels, (start, end) of the leaders, and the frame, in points."""
    with canvas(3.4) as (figure, _):
        axis = figure.subplots()
        axis.plot(*zip(*points, strict=True), "o")
        label_points(axis, points, texts, leader_colour="grey")
        dots = axis.transData.transform(points)
        boxes = [text.get_window_extent() for text in axis.texts]
        leaders = [axis.transData.transform(line.get_xydata()) for line in axis.lines[1:]]
        return dots, boxes, leaders, axis.get_window_extent()


def distance(box, dot) -> float:
    return float(np.hypot(dot[0] - np.clip(dot[0], box.x0, box.x1), dot[1] - np.clip(dot[1], box.y0, box.y1)))


CROWD = [(0.6, 7), (0.6, 43), (39, 17), (39, 25), (30, 23), (88, 20), (73, 20), (77, 23), (180, 18), (33, 7), (97, 12)]
CROWD += [(88, 30), (45, 7), (85, 12), (69, 20), (85, 14), (95, 22), (22, 23), (0.6, 57), (85, 12)]


def test_labels_of_near_points_stand_apart():
    points = [(2.0, 60.0), (2.02, 60.5), (2.0, 61.0), (5.0, 60.0), (9.0, 90.0)]
    _, boxes, _, frame = place_labels(points, [f"arm {i}" for i in range(len(points))])
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes)


@pytest.mark.parametrize("points", [CROWD, [(1.0, 50.0)] * 5, [(1.0, 50.0), (9.0, 60.0)]])
def test_label_is_beside_its_dot_or_joined_to_it(points):
    dots, boxes, leaders, _ = place_labels(points, [str(i) for i in range(len(points))])
    for i, (dot, box) in enumerate(zip(dots, boxes, strict=True)):
        joined = any(np.allclose(start, dot) and distance(box, end) < 1 for start, end in leaders)
        nearer = [j for j, other in enumerate(dots) if j != i and distance(box, other) <= distance(box, dot)]
        assert joined or (distance(box, dot) <= 6.5 and not nearer), i


def test_lone_label_needs_no_leader():
    assert place_labels([(1.0, 50.0), (9.0, 60.0)], ["a", "b"])[2] == []


def cost_point(i: int) -> CostPoint:
    return CostPoint(f"<arm> {i}", CROWD[i][0], CROWD[i][1] / 100, 0.0, 0.9, "gold" if i % 5 else "main")


def test_leaders_are_in_the_svg_and_the_same_each_time():
    points = [cost_point(i) for i in range(len(CROWD))]
    svg = draw_costs("c", points, y_label="accuracy (%)")
    assert svg == draw_costs("c", points, y_label="accuracy (%)")
    assert "<arm> 3" in " ".join(t.text or "" for t in ElementTree.fromstring(svg).iter())
    assert svg.count("stroke: var(--muted)") > 3


def entry(arm: str, *, gold: bool = False) -> dict:
    bins = [{"confidence": 0.2, "accuracy": 0.3, "n": 5}, {"confidence": 0.8, "accuracy": 0.7, "n": 5}]
    return {"arm": arm, "label": arm_label(arm, uses_gold=gold), "uses_gold": gold, "calibration": {"bins": bins}}


def captions(svg: str) -> list[str]:
    return [t.text for t in ElementTree.fromstring(svg).iter() if t.tag.endswith("text")]


ALL_ARMS = [*(arm for arm in ARM_LABELS if not arm.startswith("oracle")), *(f"semievol-{part}" for part in PARTS)]


def test_reliability_has_a_panel_for_each_of_nineteen_arms_the_method_first():
    arms = [entry(arm) for arm in ALL_ARMS] + [entry("oracle_select", gold=True), entry("oracle_full", gold=True)]
    texts = captions(_reliability(arms, {"main": "semievol", "reference": "sft_matched", "arms": arms}, "accuracy (%)"))
    names = [text for text in texts if not text.isdigit()]
    assert names[:3] == ["SemiEvol", "SFT, matched", "steps"]
    assert {
        "Oracle selection",
        "SFT on all gold",
        *(arm_label(f"semievol-{part}", uses_gold=False) for part in PARTS),
    } <= set(names)
    assert names.count("(uses gold)") == 2


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("SFT", "SFT"),
        ("Confident pseudo-labels", "Confident\npseudo-labels"),
        ("x" * 40, "xxxxxxxxxx\nxxxxxxxxx…"),
        ("x" * 40 + " (uses gold)", "xxxxxxxxx…\n(uses gold)"),
    ],
)
def test_names_of_small_panels_have_two_lines(label, lines):
    assert _two_lines(label, 13 if "pseudo" in label else 10) == lines


def test_arms_that_matter_are_drawn_first():
    arms = [entry(f"arm_{i}") for i in range(17)] + [entry("sft"), entry("semievol")]
    texts = captions(_reliability(arms, {"main": "semievol", "reference": "sft", "arms": arms}, "accuracy (%)"))
    names = [text for text in texts if text.startswith(("Arm", "S"))]
    assert names[:2] == ["SemiEvol", "SFT"]
    assert len(names) == len(arms)


def test_nineteen_entropy_histograms_name_arm_and_mean():
    rows = [Histogram(arm, np.array([0.5, 1.0]), np.array([1.0, 0.0]), "other") for arm in [*ALL_ARMS, "a", "b"]]
    texts = captions(compare_figures.draw_histograms("h", rows, x_label="x"))
    assert {"semievol-as", "a", "b"} <= set(texts)
    assert texts.count("mean 0.75") == len(rows)


def grouped(*arms: tuple[str, bool]) -> str:
    lines = [{"arm": arm, "group": "g", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6} for arm, _ in arms]
    entries = [entry(arm, gold=gold) for arm, gold in arms]
    results = {"groups": lines, "arms": entries, "main": "semievol", "reference": "sft_matched"}
    return _groups(results, "accuracy (%)")


def test_only_gold_has_golds_colour_in_the_figure_of_groups():
    plain = grouped(("semievol", False), ("sft_matched", False), ("sft", False), ("zero_shot", False))
    assert "var(--sft-matched)" not in plain
    gold = grouped(("semievol", False), ("sft_matched", False), ("sft", False), ("oracle_full", True))
    assert re.search(r"fill: var\(--paper\); stroke: var\(--sft-matched\)", gold)


def test_other_arms_of_the_figure_of_groups_differ_by_their_shapes():
    shapes = [dot["marker"] for dot in _dots(["main", "other", "other", "other", "gold", "gold"])]
    assert len(set(shapes[1:4])) == 3
    assert shapes[4] != shapes[5]
    assert "o" not in shapes[1:4]
