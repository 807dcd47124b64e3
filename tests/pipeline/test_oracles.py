"""The stages that look at the sealed targets: what they keep, and that nothing else sees a target."""

import pkgutil
from dataclasses import replace
from importlib import import_module

import pytest

from semievol import stages
from semievol.artifacts import SEALED_GOLD
from semievol.config import SelectConfig, TaskConfig
from semievol.errors import ArtifactError, ConfigError, DataError
from semievol.pipeline import run
from semievol.stages import audit, evolve, oracle_full, oracle_select
from semievol.stages.oracle_select import rank_right, take_surest
from semievol.types import Dropped, Example, Gold, PseudoLabel
from tests.pipeline.test_measure import context

EXAMPLES = {f"u{i}": Example(f"u{i}", "Which?", choices=("x", "y")) for i in range(4)}
GOLD = {"u0": "A", "u1": "B", "u2": "A"}


def make_label(name: str, nll: float, source="justified") -> PseudoLabel:
    return PseudoLabel(name, "A", "Answer: A", source, 1.0, mean_nll=nll, max_probability=1 - nll)


def test_only_evaluate_audit_and_oracles_declare_the_sealed_gold():
    modules = [import_module(f"semievol.stages.{m.name}") for m in pkgutil.iter_modules(stages.__path__)]
    declaring = {m.STAGE.name for m in modules if SEALED_GOLD in m.STAGE.reads}
    assert declaring == {"evaluate", "audit", "oracle_select", "oracle_full"}


def test_rank_right_puts_the_surest_first_and_says_why_others_are_out():
    labels = [make_label("u0", 0.4), make_label("u1", 0.1), make_label("u2", 0.2), make_label("u3", 0.1)]
    found = rank_right(labels, GOLD, EXAMPLES, task=TaskConfig(type="choice"), select=SelectConfig())
    assert [x.example_id for x in found.right] == ["u2", "u0"]
    assert {x.example_id: x.reason for x in found.dropped} == {"u1": "wrong answer", "u3": "no sealed target"}


def test_rank_right_puts_what_select_does_not_rank_first():
    labels = [make_label("u0", 0.1), make_label("u2", 0.4, "consensus")]
    select = SelectConfig(apply_to="justified")
    found = rank_right(labels, GOLD, EXAMPLES, task=TaskConfig(type="choice"), select=select)
    assert [x.example_id for x in found.right] == ["u2", "u0"]


@pytest.mark.parametrize(
    ("wanted", "per_answer", "expected"),
    [
        ({"": 3}, False, ["a1", "a2", "b1"]),
        ({"A": 1, "B": 2}, True, ["a1", "b1", "b2"]),
        ({"A": 1, "B": 3}, True, ["a1", "b1", "b2", "a2"]),  # B has no third one
    ],
)
def test_take_surest_keeps_the_shares_of_the_answers_where_select_does(wanted, per_answer, expected):
    right = [replace(make_label(name, 0.1), answer=name[0].upper()) for name in ("a1", "a2", "b1", "a3", "b2")]
    assert [x.example_id for x in take_surest(right, wanted, per_answer=per_answer)] == expected


@pytest.fixture
def chosen(make_config):
    """Run to select and then an oracle; returns the oracle's context and statistics."""

    def choose(stage, **changes):
        config = make_config(evolve={"kept_by": stage.STAGE.name}, **changes)
        run(config, until_stage="select")
        ctx = context(config, stage.STAGE)
        return ctx, stage.run(ctx)

    return choose


def kept_rows(ctx) -> list[PseudoLabel]:
    return list(ctx.run_dir.read_records(f"round-1/{ctx.stage.name}/kept", PseudoLabel))


def targets(ctx) -> dict[str, str]:
    return {g.example_id: g.target for g in ctx.run_dir.read_records(SEALED_GOLD, Gold)}


def test_oracle_select_keeps_as_many_as_select_and_all_right(chosen):
    ctx, stats = chosen(oracle_select)
    kept, gold = kept_rows(ctx), targets(ctx)
    assert len(kept) == stats["n_kept"] == stats["n_wanted"] == 40
    assert all(x.answer == gold[x.example_id] for x in kept)
    dropped = list(ctx.run_dir.read_records("round-1/oracle_select/dropped", Dropped))
    assert {x.reason for x in dropped} == {"wrong answer", "not needed"}
    assert len(kept) + len(dropped) == 80


def test_oracle_select_says_how_many_are_right_where_they_are_too_few(chosen):
    ctx, stats = chosen(oracle_select, select={"keep_fraction": 1.0})
    assert stats["n_wanted"] == 80 > stats["n_kept"] == stats["n_right"] == len(kept_rows(ctx)) > 40


def test_oracle_full_keeps_every_target(chosen):
    ctx, stats = chosen(oracle_full)
    assert {x.example_id: x.answer for x in kept_rows(ctx)} == targets(ctx)
    assert stats == {"n_kept": 80, "n_dropped": 0}
    assert kept_rows(ctx)[0].completion == f"Answer: {kept_rows(ctx)[0].answer}"


@pytest.mark.parametrize(("stage", "n_rows"), [(oracle_select, 24 + 40), (oracle_full, 24 + 80)])
def test_evolve_trains_on_what_an_oracle_kept_without_reading_targets(chosen, stage, n_rows):
    ctx, _ = chosen(stage)
    evolving = context(ctx.config, evolve.STAGE)
    assert evolve.run(evolving)["n_rows"] == n_rows
    assert f"{stage.STAGE.name}/kept" in evolve.STAGE.reads_of(ctx.config)
    assert "select/kept" not in evolve.STAGE.reads_of(ctx.config)
    with pytest.raises(ArtifactError, match="does not declare data/sealed_gold"):
        list(evolving.read(SEALED_GOLD, Gold))


def test_audit_of_an_oracle_is_of_what_it_kept(chosen):
    ctx, _ = chosen(oracle_select)
    auditing = context(ctx.config, audit.STAGE)
    audit.run(auditing)
    (entry,) = auditing.run_dir.read_json("audit/pseudo_labels")["pseudo_labels"]
    assert entry["precision"]["kept"]["value"] == 1.0
    assert entry["precision"]["all"]["value"] < 1.0


@pytest.mark.parametrize("stage", [oracle_select, oracle_full])
def test_oracle_without_targets_is_refused(chosen, task_files, tmp_path, stage):
    lines = [line.rsplit(",", 1)[0] for line in open(task_files["unlabeled"], encoding="utf-8").read().splitlines()]  # noqa: PTH123, SIM115
    bare = tmp_path / "bare.csv"
    bare.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"{stage.STAGE.name}: no unlabelled row has a target"):
        chosen(stage, data={**task_files, "unlabeled": str(bare)})


def test_oracles_work_on_one_round(make_config):
    with pytest.raises(ConfigError, match="oracle_full works on one round"):
        make_config(evolve={"kept_by": "oracle_full"}, rounds=2)


def test_oracle_select_takes_right_labels_without_a_confidence_last(make_config):
    """As some hosted labels have none. The threshold is that of the others."""
    config = make_config(evolve={"kept_by": "oracle_select"}, select={"keep_fraction": 1.0})
    run(config, until_stage="select")
    ctx = context(config, oracle_select.STAGE)
    labels = list(ctx.run_dir.read_records("round-1/justify/pseudo_labels", PseudoLabel))
    changed = [replace(x, mean_nll=None) if place % 2 else x for place, x in enumerate(labels)]
    ctx.run_dir.write_records("round-1/justify/pseudo_labels", changed, PseudoLabel)
    stats = oracle_select.run(ctx)
    measured = [x.mean_nll for x in kept_rows(ctx) if x.mean_nll is not None]
    assert 0 < len(measured) < stats["n_kept"]
    assert stats["uncertainty"] == max(measured)
