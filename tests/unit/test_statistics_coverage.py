"""Do the intervals hold the truth as often as they say? Simulated data with known answers.

A share of 1,000 draws has a standard error of 0.0069 at 95%, so an interval passes from 0.936 on.
"""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from semievol.compare_stats import crossed_mean, ratio_interval, share_interval, value_effect
from semievol.metrics import (
    clopper_pearson_interval,
    hierarchical_difference,
    holm,
    mcnemar_p_value,
    paired_difference,
    wilson_interval,
)

N_DRAWS = 1000
LOWEST = 0.95 - 2 * np.sqrt(0.95 * 0.05 / N_DRAWS)
Scores = NDArray[np.float64]

DESIGNS = {
    "training is certain": (0.0, 0.3, 0.0),
    "answers flicker, models are alike": (0.0, 0.3, 0.6),
    "models differ a little": (0.05, 0.3, 0.6),
    "models differ much": (0.3, 0.3, 0.3),
}
"""Standard deviations on the logit-like scale: of a training, of a row's liking for an arm, of one answer."""


def simulate(
    generator: np.random.Generator, n_draws: int, n_seeds: int, n_rows: int, design: str, gains: tuple[float, ...]
) -> list[Scores]:
    """0/1 scores (n_draws, n_seeds, n_rows) of several arms: `gains` says how much easier each arm finds the rows."""
    of_training, of_row, of_answer = DESIGNS[design]
    ease = generator.normal(0.6, 1.2, (n_draws, 1, n_rows))
    arms = []
    for gain in gains:
        latent = (
            ease
            + gain
            + generator.normal(0, of_row, (n_draws, 1, n_rows))
            + generator.normal(0, of_training, (n_draws, n_seeds, 1))
            + generator.normal(0, of_answer, (n_draws, n_seeds, n_rows))
        )
        arms.append((latent > 0).astype(np.float64))
    return arms


def true_accuracy(design: str, gain: float) -> float:
    """All parts are normal, so the share of right answers is known exactly."""
    variance = 1.2**2 + sum(sd**2 for sd in DESIGNS[design])
    return float(stats.norm.cdf((0.6 + gain) / np.sqrt(variance)))


@pytest.mark.parametrize("n", [20, 100, 400])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_clopper_pearson_covers_at_least_nominal(n: int, share: float) -> None:
    hits = np.arange(n + 1)
    ends = np.array([clopper_pearson_interval(int(k), n) for k in hits])
    held = (ends[:, 0] <= share) & (share <= ends[:, 1])
    assert float(stats.binom.pmf(hits, n, share)[held].sum()) >= 0.95


@pytest.mark.parametrize("n", [300, 1000])
def test_wilson_covers_nominal_on_average_over_shares(n: int) -> None:
    hits = np.arange(n + 1)
    ends = np.array([wilson_interval(int(k), n) for k in hits])
    shares = np.linspace(0.02, 0.98, 193)
    held = (ends[:, :1] <= shares) & (shares <= ends[:, 1:])
    coverage = (stats.binom.pmf(hits[:, np.newaxis], n, shares) * held).sum(axis=0)
    assert coverage.mean() == pytest.approx(0.95, abs=0.005)
    assert coverage.min() > 0.92


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_crossed_interval_of_a_difference_covers_nominal(design: str, n_seeds: int) -> None:
    generator = np.random.default_rng(1)
    a, b = simulate(generator, N_DRAWS, n_seeds, 100, design, (0.3, 0.0))
    truth = true_accuracy(design, 0.3) - true_accuracy(design, 0.0)
    ends = np.array([crossed_mean(d).interval() for d in a - b])
    assert np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) >= LOWEST


@pytest.mark.parametrize("own_rows", [False, True], ids=["one test set", "a test set a split"])
@pytest.mark.parametrize("n_splits", [2, 3, 5])
def test_crossed_interval_over_splits_covers_nominal(n_splits: int, own_rows: bool) -> None:
    # Runs of one split share its labelled rows: as units of their own they would give far too narrow an interval.
    generator = np.random.default_rng((11, n_splits))
    n_seeds, n_rows = 3, 60
    splits = np.repeat(np.arange(n_splits), n_seeds).tolist()
    by_split, by_run = [], []
    for _ in range(N_DRAWS):
        of_run = np.repeat(generator.normal(0, 0.05, n_splits), n_seeds) + generator.normal(0, 0.02, n_splits * n_seeds)
        n_all = n_rows * (n_splits if own_rows else 1)
        scores = 0.1 + of_run[:, np.newaxis] + generator.normal(0, 0.2, n_all) + generator.normal(0, 0.1, (1, n_all))
        if own_rows:
            elsewhere = np.arange(n_all) // n_rows != np.array(splits)[:, np.newaxis]
            scores[elsewhere] = np.nan
        for units, hits in ((splits, by_split), (None, by_run)):
            low, high = crossed_mean(scores, units=units).interval()
            hits.append(low <= 0.1 <= high)
    assert LOWEST <= np.mean(by_split) <= 0.99
    assert np.mean(by_run) < np.mean(by_split) - 0.04


@pytest.mark.slow
@pytest.mark.parametrize("n_rows", [100, 500])
@pytest.mark.parametrize("n_seeds", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("design", DESIGNS)
def test_crossed_interval_covers_nominal_over_more_designs(design: str, n_seeds: int, n_rows: int) -> None:
    generator = np.random.default_rng((2, n_seeds, n_rows))
    truth = true_accuracy(design, 0.3) - true_accuracy(design, 0.0)
    hits = []
    for _ in range(4):
        a, b = simulate(generator, N_DRAWS, n_seeds, n_rows, design, (0.3, 0.0))
        ends = np.array([crossed_mean(d).interval() for d in a - b])
        hits.append(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])))
    assert np.mean(hits) >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / (4 * N_DRAWS))


def test_seed_row_bootstrap_is_too_narrow_with_three_seeds() -> None:
    # Why the reports do not lead with it: where trainings differ, it holds the truth far too seldom.
    generator = np.random.default_rng(3)
    design = "models differ much"
    a, b = simulate(generator, 400, 3, 100, design, (0.3, 0.0))
    truth = true_accuracy(design, 0.3) - true_accuracy(design, 0.0)
    found = [hierarchical_difference(x, y, n_bootstrap=200, seed=0) for x, y in zip(a, b, strict=True)]
    assert np.mean([f.ci_low <= truth <= f.ci_high for f in found]) < 0.88


def test_crossed_interval_with_groups_covers_where_rows_of_a_group_are_alike() -> None:
    generator = np.random.default_rng(4)
    groups = [i // 4 for i in range(120)]
    hits_rows, hits_groups = [], []
    for _ in range(N_DRAWS):
        of_group = np.repeat(generator.normal(0, 0.3, 30), 4)
        scores = 0.1 + of_group + generator.normal(0, 0.1, (3, 120))
        for found, hits in ((crossed_mean(scores), hits_rows), (crossed_mean(scores, groups=groups), hits_groups)):
            low, high = found.interval()
            hits.append(low <= 0.1 <= high)
    assert np.mean(hits_groups) >= LOWEST
    assert np.mean(hits_rows) < 0.8


def test_share_interval_over_seeds_covers_nominal() -> None:
    generator = np.random.default_rng(5)
    design = "models differ a little"
    (scores,) = simulate(generator, N_DRAWS, 3, 100, design, (1.5,))
    truth = true_accuracy(design, 1.5)
    ends = np.array([share_interval(crossed_mean(s)) for s in scores])
    assert ends.min() >= 0.0
    assert ends.max() <= 1.0
    assert np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) >= LOWEST


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("group_sd", [0.0, 0.15])
def test_share_interval_over_groups_covers_nominal_and_is_no_wider_than_it_must(group_sd: float, n_seeds: int) -> None:
    generator = np.random.default_rng(8)
    n_groups, n_each, share = 40, 5, 0.7
    groups = np.repeat(np.arange(n_groups), n_each)
    covered, widths, plain = [], [], []
    for _ in range(N_DRAWS):
        chances = np.clip(np.repeat(generator.normal(share, group_sd, n_groups), n_each), 0, 1)
        right = (generator.random(n_groups * n_each) < chances).astype(float)
        found = crossed_mean(np.tile(right, (n_seeds, 1)), groups=groups)  # all models alike
        low, high = share_interval(found)
        covered.append(low <= share <= high)
        widths.append(high - low)
        plain.append(2 * found.half_width())
    assert np.mean(covered) >= LOWEST
    assert np.mean(widths) <= 1.1 * np.mean(plain)


def test_gap_closed_covers_nominal() -> None:
    # Fieller's interval holds g exactly where the mean of numerator - g denominator may be zero.
    generator = np.random.default_rng(6)
    design = "models differ a little"
    sft, arm, oracle = simulate(generator, N_DRAWS, 3, 100, design, (0.0, 0.4, 1.0))
    start, value, end = (true_accuracy(design, gain) for gain in (0.0, 0.4, 1.0))
    truth = (value - start) / (end - start)
    held = []
    for d in (arm - sft) - truth * (oracle - sft):
        low, high = crossed_mean(d).interval()
        held.append(low <= 0 <= high)
    assert np.mean(held) >= LOWEST


def test_gap_closed_interval_is_where_the_test_turns() -> None:
    generator = np.random.default_rng(7)
    sft, arm, oracle = (x[0] for x in simulate(generator, 1, 3, 200, "models differ a little", (0.0, 0.4, 1.0)))
    found = ratio_interval(arm - sft, oracle - sft)
    assert found.value is not None
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_low < found.value < found.ci_high
    for end in (found.ci_low, found.ci_high):
        low, high = crossed_mean((arm - sft) - end * (oracle - sft)).interval()
        assert min(abs(low), abs(high)) < 1e-6


def test_equal_arms_are_told_apart_at_most_as_often_as_the_level_says() -> None:
    generator = np.random.default_rng(8)
    a, b = simulate(generator, N_DRAWS, 3, 100, "models differ a little", (0.2, 0.2))
    found = [crossed_mean(d) for d in a - b]
    for level in (0.05, 0.2):
        rejected = np.mean([abs(f.mean) > f.half_width(1 - level) for f in found])
        assert rejected <= level + 2 * np.sqrt(level * (1 - level) / N_DRAWS)


def test_paired_difference_of_one_run_covers_nominal() -> None:
    generator = np.random.default_rng(9)
    design = "training is certain"
    a, b = (x[:, 0] for x in simulate(generator, N_DRAWS, 1, 200, design, (0.3, 0.0)))
    truth = true_accuracy(design, 0.3) - true_accuracy(design, 0.0)
    found = [paired_difference(x, y, n_bootstrap=200, seed=0) for x, y in zip(a, b, strict=True)]
    assert np.mean([f.ci_low <= truth <= f.ci_high for f in found]) >= LOWEST


def test_holm_gives_values_worked_by_hand() -> None:
    # In order: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04, which may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_holds_the_familywise_error() -> None:
    generator = np.random.default_rng(10)
    p_values = generator.random((N_DRAWS, 10))
    rejected = [bool((holm(line) <= 0.05).any()) for line in p_values]
    assert np.mean(rejected) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / N_DRAWS)


@pytest.mark.parametrize(("first", "second"), [(1, 0), (9, 1), (6, 16), (30, 30), (0, 12)])
def test_mcnemar_agrees_with_scipy(first: int, second: int) -> None:
    a = np.r_[np.ones(first), np.zeros(second), np.ones(5)]
    b = np.r_[np.zeros(first), np.ones(second), np.ones(5)]
    assert mcnemar_p_value(a, b) == pytest.approx(stats.binomtest(first, first + second).pvalue)


@pytest.mark.parametrize("n_splits", [2, 3, 5])
def test_value_effect_is_seen_by_chance_as_often_as_it_says(n_splits: int) -> None:
    generator = np.random.default_rng(5)
    drawn = generator.normal(0.6, 0.5, (N_DRAWS, n_splits, 1, 1))
    trained = generator.normal(0, 0.3, (N_DRAWS, n_splits, 4, 1))
    rows = generator.normal(0, 1.2, (N_DRAWS, 1, 1, 100))
    scores = (drawn + trained + rows + generator.normal(0, 0.3, (N_DRAWS, n_splits, 4, 100)) > 0).mean(axis=-1)
    found = [effect.p_value for table in scores if (effect := value_effect(table)) is not None]
    assert len(found) >= N_DRAWS - 1
    assert np.mean(np.array(found) > 0.05) == pytest.approx(0.95, abs=2 * np.sqrt(0.95 * 0.05 / N_DRAWS))
