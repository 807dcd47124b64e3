"""The order in which processes take the parts of a comparison: nothing twice, nothing out of order, nothing stuck."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semievol.arms import ARMS
from semievol.compare_plan import fingerprint_run, plan_runs, share_tokenizers
from semievol.compare_schedule import Schedule, asks_shared_model, share_warm_model
from semievol.comparison import ArmRecord, ComparisonRecord, pending_runs

SEEDS = (0, 1, 2)


@pytest.fixture
def planned(make_config, tmp_path):
    """All arms with three seeds on one split, and the fingerprints of their steps."""
    config = make_config()
    arms = tuple(ARMS.values())
    names = [arm.name for arm in arms]
    record = ComparisonRecord(
        reference="sft",
        use_gold=True,
        arms=tuple(ArmRecord(arm.name, arm.description, arm.uses_gold) for arm in arms),
        seeds=SEEDS,
        splits=(0,),
        sweep=None,
        runs=pending_runs(names, splits=(0,), seeds=SEEDS),
    )
    runs = plan_runs(record, arms, {0: config}, {"": lambda c: c})
    backends = share_tokenizers()
    return runs, {run.record.key: fingerprint_run(run, tmp_path, backends) for run in runs}


def simulate(runs, prints, draw_index, *, jobs):
    """Work through a schedule; `draw_index(n)` says which of n parts in hand ends next. Returns what ran, in order."""
    schedule = Schedule(runs, prints, {0: ()}, jobs=jobs)
    working, held, ran = [], set(), []
    while True:
        while len(working) < jobs and (part := schedule.next()) is not None:
            mine = [(s, (s.name, prints[part.run.record.key][s.name])) for s in part.steps]
            new = [(step, found) for step, found in mine if found not in held]
            assert not {found for _, found in new} & {found for _, other in working for _, found in other}
            ran += [(part.run, step, found) for step, found in new]
            working.append((part, new))
        if not working:
            return ran
        part, _ = working.pop(draw_index(len(working)))
        steps = {(s.name, prints[part.run.record.key][s.name]) for s in part.steps}
        held |= steps
        schedule.end(part, finished=steps, is_over=part.is_last)


def asked(planned, ran, seed):
    share_warm = share_warm_model(*planned)
    return [
        (run.record.arm, step.name)
        for run, step, _ in ran
        if run.record.seed == seed and asks_shared_model(run, step, share_warm=run.record.key in share_warm)
    ]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), jobs=st.integers(2, 5))
def test_every_step_runs_once_and_questions_keep_their_order(planned, data, jobs):
    runs, prints = planned
    alone = simulate(runs, prints, lambda n: 0, jobs=1)
    ran = simulate(runs, prints, lambda n: data.draw(st.integers(0, n - 1)), jobs=jobs)
    assert Counter(found for _, _, found in ran) == Counter(found for _, _, found in alone)
    assert max(Counter(found for _, _, found in ran).values()) == 1
    for seed in SEEDS:
        assert asked(planned, ran, seed) == asked(planned, alone, seed)


def test_one_process_takes_run_after_run(planned):
    runs, prints = planned
    order = [run.record.key for run, _, _ in simulate(runs, prints, lambda n: 0, jobs=1)]
    assert [key for i, key in enumerate(order) if i == 0 or key != order[i - 1]] == [
        run.record.key for run in runs if run.record.key in set(order)
    ]


def test_second_process_helps_with_a_single_seed(planned):
    runs, prints = planned
    one = [run for run in runs if run.record.seed == 0]
    schedule = Schedule(one, prints, {0: ()}, jobs=2)
    at_once = []
    working = []
    while True:
        while len(working) < 2 and (part := schedule.next()) is not None:
            working.append(part)
        if not working:
            break
        at_once.append(len(working))
        part = working.pop(0)
        finished = {(s.name, prints[part.run.record.key][s.name]) for s in part.steps}
        schedule.end(part, finished=finished, is_over=part.is_last)
    assert at_once.count(2) > len(at_once) / 2


def test_a_warm_model_of_its_own_is_asked_by_nobody_else(planned):
    share_warm = {arm for arm, *_ in share_warm_model(*planned)}
    assert {"sft", "self_consistency", "semievol", "sft_matched"} <= share_warm
    assert not {"tapt_sft", "zero_shot", "oracle_full"} & share_warm


def test_questions_go_before_trainings_that_nobody_waits_for(planned):
    runs, prints = planned
    runs = [run for run in runs if run.record.arm in ("zero_shot", "sft", "oracle_full", "semievol")]
    for jobs, is_before in ((1, False), (2, True)):
        ran = simulate(runs, prints, lambda n: 0, jobs=jobs)
        order = [(run.record.arm, run.record.seed) for run, *_ in ran]
        assert (order.index(("sft", 2)) < order.index(("oracle_full", 0))) is is_before


def test_few_seeds_are_begun_before_the_first_one_ends(planned):
    """As many as there are processes, and one more: results come while later seeds have not begun."""
    runs, prints = planned
    first = [run for run in runs if run.record.seed == 0]
    runs, found = [], {}
    for seed in range(8):
        for run in first:
            copy = replace(run, record=replace(run.record, seed=seed))
            runs.append(copy)
            found[copy.record.key] = {name: f"{seed}-{value}" for name, value in prints[run.record.key].items()}
    order = [run.record.seed for run, *_ in simulate(runs, found, lambda n: 0, jobs=2)]
    for seed in range(8):
        last = len(order) - 1 - order[::-1].index(seed)
        assert max(order[:last]) <= seed + 3


def test_failed_run_does_not_hold_up_the_others(planned):
    runs, prints = planned
    schedule = Schedule(runs, prints, {0: ()})
    n_ended = 0
    while (part := schedule.next()) is not None:
        schedule.end(part, finished=(), is_over=True)
        n_ended += 1
    assert n_ended == len(runs)
    assert not schedule.left
