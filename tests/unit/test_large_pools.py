"""What stands in for lists of rows gives the same as lists would, and does not grow with the pool."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.audit import Fates, RoundAudit
from semievol.backends.fake import ADAPTER_FILE, FakeTrainer
from semievol.config import FakeTrainerConfig, ModelConfig, parse_config
from semievol.demonstrations import ById
from semievol.drafts import Draft, Drafts, Log, Place, RowIds
from semievol.errors import ArtifactError
from semievol.loading import load_examples
from semievol.pools import InOrder
from semievol.spool import Spool
from semievol.types import Example, Gold, Message, ModelRef, PseudoLabel, SftRow
from tests.pipeline.conftest import FAKE, write_task

HELD_BYTES = 400
"""A row held as objects takes a thousand bytes; what is kept of it in arrays about a hundred."""


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_loading_holds_no_unlabelled_row(tmp_path: Path) -> None:
    peaks = []
    for i, n in enumerate((20, 1200, 2700)):  # the first time fills caches; the first thousand rows are looked at whole
        folder = tmp_path / str(i)
        folder.mkdir()
        paths = write_task(folder, {"labeled": 24, "unlabeled": n, "test": 40})
        config = parse_config({"data": paths, **FAKE})
        peaks.append(peak_bytes(lambda config=config: load_examples(config)))
    assert (peaks[2] - peaks[1]) / 1500 < HELD_BYTES


LABELS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.3]), st.booleans(), st.sampled_from([True, False, None])),
    max_size=30,
)


@given(rows=LABELS, seed=st.integers(0, 9))
def test_precision_curve_orders_ties_by_id(rows: list[tuple[float, bool, bool | None]], seed: int) -> None:
    names = [f"r{i}" for i in np.random.default_rng(seed).permutation(len(rows))]
    audit = RoundAudit()
    for name, (nll, is_kept, is_right) in zip(names, rows, strict=True):
        label = PseudoLabel(name, "A", "A", "consensus", 1.0, mean_nll=nll)
        audit.add(label, is_kept=is_kept, is_right=is_right)
    rated = sorted((nll, name, right) for name, (nll, _, right) in zip(names, rows, strict=True) if right is not None)
    points = audit.precision_curve(lambda places: {i: names[i] for i in places.tolist()}, n_points=7)
    for point in points:
        n = round(point["coverage"] * len(rated))
        assert point["precision"] == pytest.approx(sum(right for _, _, right in rated[:n]) / n)
        assert point["mean_nll"] == rated[n - 1][0]
    assert bool(points) == bool(rated)


def test_round_audit_counts_what_was_kept_and_right() -> None:
    audit = RoundAudit()
    for i, (source, is_kept, is_right) in enumerate(
        [("consensus", True, True), ("justified", True, False), ("justified", False, None)]
    ):
        label = PseudoLabel(f"r{i}", "A", "A", source, 0.5)  # type: ignore[arg-type]
        audit.add(label, is_kept=is_kept, is_right=is_right)
    entry = audit.summarize(1)
    assert (entry["n_labels"], entry["n_kept"], entry["n_with_gold"]) == (3, 2, 2)
    assert entry["n_by_source"] == {"consensus": 1, "justified": 2}
    assert {name: (p["value"], p["n"]) for name, p in entry["precision"].items()} == {
        "all": (0.5, 2),
        "kept": (0.5, 2),
        "consensus": (1.0, 1),
        "justified": (0.0, 1),
    }


def test_fates_come_back_with_their_rows() -> None:
    fates = Fates()
    for end in (("kept", "chosen", 1), ("select", "unsure", 1), ("kept", "chosen", 2)):
        fates.add(*end)
    assert [(f.example_id, f.fate, f.round) for f in fates.of("abc")] == [
        ("a", "kept", 1),
        ("b", "select", 1),
        ("c", "kept", 2),
    ]
    assert fates.count() == [
        {"fate": "kept", "reason": "chosen", "n": 2},
        {"fate": "select", "reason": "unsure", "n": 1},
    ]


def test_in_order_gives_each_record_to_its_row() -> None:
    records = InOrder("gold", [Gold("b", "B"), Gold("d", "D")])
    assert [records.take(i) is not None for i in "abcd"] == [False, True, False, True]
    records.check_all_taken()


def test_in_order_refuses_records_in_another_order() -> None:
    records = InOrder("gold", [Gold("b", "B"), Gold("a", "A")])
    for row_id in "ab":
        records.take(row_id)
    with pytest.raises(ArtifactError, match="gold: row a is not in data/unlabeled, or not in its order"):
        records.check_all_taken()


def test_by_id_finds_rows_and_names_a_missing_one() -> None:
    rows = ById([Example("a", "one"), Example("b", "two")])
    assert rows.get("b").question == "two"
    with pytest.raises(ArtifactError, match="row c"):
        rows.get("c")


IDS = st.sampled_from([None, "a", "b", "a-2", "b-2"])


@given(rows=st.lists(st.tuples(IDS, st.sampled_from(["one", "two"])), max_size=12), configured=st.booleans())
def test_row_ids_are_unique_and_the_first_row_keeps_its_own(
    rows: list[tuple[str | None, str]], configured: bool
) -> None:
    columns = {"columns": {"id": "id"}} if configured else {}
    log = Log(parse_config({"data": {"labeled": "x", "unlabeled": "y", **columns}}))
    drafts = make_drafts(rows)
    ids = list(RowIds(drafts, log).assign(log))
    given_ids = [name for name in ids if name is not None]
    assert len(set(given_ids)) == len(given_ids)
    first: dict[str, str] = {}
    clash = any(name is not None and first.setdefault(name, text) != text for name, text in rows)
    assert (None in ids) == (configured and clash)
    for i, (name, _) in enumerate(rows):
        is_first = name is not None and name not in {other for other, _ in rows[:i]} | set(ids[:i])
        if is_first and (configured or not clash):
            assert ids[i] == name


def make_drafts(rows: list[tuple[str | None, str]]) -> Drafts:
    from array import array

    from semievol.columns import Fields

    drafts = Drafts(Spool(Draft), array("Q"), array("Q"))
    for line, (name, text) in enumerate(rows):
        fields = Fields(name, text, None, (), (), None, (), None, 0)
        drafts.append(Draft(Place("file", line, "labeled", "target"), fields))
    return drafts


def test_fake_trainer_writes_the_json_of_a_dict(tmp_path: Path) -> None:
    names = ["b", "a", "ä", "B", "a-10", "a-9"]
    rows = [SftRow(name, (Message("user", name),), f"Answer: {name}", 0.5 if name == "b" else 1.0) for name in names]
    config = FakeTrainerConfig(max_steps=3)
    FakeTrainer(ModelConfig()).fit(ModelRef("base"), rows, tmp_path / "adapter", config=config, seed=1)
    text = (tmp_path / "adapter" / ADAPTER_FILE).read_text(encoding="utf-8")
    seen = {
        "base": "base",
        "init": None,
        "rows": {row.id: row.completion for row in rows},
        "seed": 1,
        "steps": 3,
        "weights": {"b": 0.5},
    }
    assert text == json.dumps(seen, indent=1, sort_keys=True)
