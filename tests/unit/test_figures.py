import re
from xml.etree import ElementTree

import numpy as np
import pytest

from semievol.figures import (
    GroupValue,
    KeptPoint,
    LossCurve,
    Scored,
    draw_groups,
    draw_histograms,
    draw_losses,
    draw_precision_curves,
)

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


def test_labels_of_near_points_stand_apart():
    from semievol.compare_figures import _label_points
    from semievol.figures import canvas

    points = [(2.0, 60.0), (2.02, 60.5), (2.0, 61.0), (5.0, 60.0), (9.0, 90.0)]
    with canvas(3.0) as (figure, _):
        axis = figure.subplots()
        axis.plot(*zip(*points, strict=True), "o")
        _label_points(axis, points, [f"arm {i}" for i in range(len(points))])
        boxes = [text.get_window_extent() for text in axis.texts]
        frame = axis.get_window_extent()
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes)
