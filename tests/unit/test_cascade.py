"""Rules of the cascade on literal rows."""

import math

import pytest

from semievol.backends.base import Usage
from semievol.cascade import (
    AuditedAnswer,
    FirstLook,
    Spent,
    audited_candidates,
    count_changes,
    count_savings,
    look,
    merge_candidates,
)
from semievol.config import CascadeConfig, TaskConfig
from semievol.types import Candidates, ChoiceScores, Completion


def make_candidates(row_id: str, *answers: str) -> Candidates:
    completions = tuple(Completion(f"Answer: {a}", (-0.1,), "raw") for a in answers)
    return Candidates(row_id, completions, answers, tuple("warm-0" for _ in answers))


def make_look(row_id: str, *, settled: bool, audited: bool = False) -> FirstLook:
    return FirstLook(make_candidates(row_id, "A"), 0.9, settled, audited)


LOOKS = [
    make_look("settled", settled=True),
    make_look("open", settled=False),
    make_look("failed", settled=False),
    make_look("audited", settled=True, audited=True),
    make_look("audit failed", settled=True, audited=True),
    make_look("last", settled=False),
]
ASKED = [make_candidates("open", "B", "B"), make_candidates("audited", "C", "C"), make_candidates("last", "A", "B")]


@pytest.mark.parametrize(("probability", "settled"), [(0.95, True), (0.9499, False)])
def test_look_settles_from_the_minimum_on(probability: float, settled: bool) -> None:
    scores = ChoiceScores("row", (math.log(probability), math.log(1 - probability)), (1, 1))
    config = CascadeConfig(min_confidence=0.95, audit_fraction=1.0)
    found = look(make_candidates("row", "A"), scores, config, seed=1)
    assert (found.is_settled, found.is_audited, found.candidates.by_cascade) == (settled, settled, True)


def test_look_audits_the_configured_share() -> None:
    scores = ChoiceScores("row", (math.log(0.99), math.log(0.01)), (1, 1))
    config = CascadeConfig(audit_fraction=0.2)
    found = [look(make_candidates("row", "A"), scores, config, seed=i).is_audited for i in range(2000)]
    assert found == [look(make_candidates("row", "A"), scores, config, seed=i).is_audited for i in range(2000)]
    assert sum(found) / 2000 == pytest.approx(0.2, abs=0.03)


def test_merge_keeps_settled_rows_and_leaves_out_failed_ones() -> None:
    merged = [(c.example_id, c.answers) for c in merge_candidates(LOOKS, ASKED)]
    assert merged == [
        ("settled", ("A",)),
        ("open", ("B", "B")),
        ("audited", ("A",)),
        ("audit failed", ("A",)),
        ("last", ("A", "B")),
    ]


def test_audit_compares_only_rows_that_were_answered() -> None:
    assert [(a.answer, a.candidates.example_id) for a in audited_candidates(LOOKS, ASKED)] == [("A", "audited")]


def test_savings_are_what_the_asked_rows_took_on_average() -> None:
    looks = [make_look(str(i), settled=i < 6, audited=i < 2) for i in range(10)]
    used = Usage(prompt_tokens=300, completion_tokens=0, model_seconds=1.5)  # half of the rows had been answered before
    found = count_savings(looks, n_requests_a_row=3, spent=Spent(6, 600, 60), used=used, first_seconds=0.25)
    assert found == {
        "n_rows": 10,
        "n_settled": 6,
        "n_audited": 2,
        "n_requests_saved": 12,
        "prompt_tokens_saved": 400,
        "completion_tokens_saved": 40,
        "model_seconds_saved": 2.2,
        "first_look_seconds": 0.25,
    }


def test_savings_are_unknown_where_no_row_was_asked() -> None:
    found = count_savings(
        [make_look("row", settled=True)], n_requests_a_row=4, spent=Spent(), used=Usage(), first_seconds=0.0
    )
    assert found["n_requests_saved"] == 4
    assert (found["prompt_tokens_saved"], found["model_seconds_saved"]) == (None, None)


def test_changes_count_other_answers_and_lost_rows() -> None:
    answers = [AuditedAnswer("a", "A", "A"), AuditedAnswer("b", "A", "B"), AuditedAnswer("c", "A", None)]
    found = count_changes(answers, TaskConfig(type="choice"))
    assert (found["n_compared"], found["n_changed"], found["changed_fraction"]) == (3, 2, 2 / 3)
    assert found["ci_low"] < found["changed_fraction"] < found["ci_high"]
