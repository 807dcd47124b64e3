"""Do the intervals hold the truth as often as they say? Simulated data with known answers.

A share of 1,000 draws has a standard error of 0.0069 at 95%, so an interval that is meant to be nominal passes from
0.936 to 0.964. Where one is known to be conservative, the test says how often it holds the truth instead.
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
    mean_interval,
    paired_difference,
    tango_interval,
    wilson_interval,
)

N_DRAWS = 1000
LOWEST = 0.95 - 2 * np.sqrt(0.95 * 0.05 / N_DRAWS)
HIGHEST = 1.9 - LOWEST
Scores = NDArray[np.float64]

DESIGNS = {
    "training is certain": (0.0, 0.3, 0.0),
    "answers flicker, models are alike": (0.0, 0.3, 0.6),
    "models differ a little": (0.05, 0.3, 0.6),
    "models differ much": (0.3, 0.3, 0.3),
}
"""Standard deviations on the logit-like scale: of a training, of a row's liking for an arm, of one answer."""
HELD = {
    ("training is certain", 3): 0.95,
    ("training is certain", 5): 0.95,
    ("models differ much", 3): 0.95,
    ("models differ much", 5): 0.95,
    ("answers flicker, models are alike", 3): 0.983,
    ("answers flicker, models are alike", 5): 0.967,
    ("models differ a little", 3): 0.981,
    ("models differ a little", 5): 0.964,
}
"""How often the crossed interval holds the truth, of (design, seeds): nominal, or as measured over 16,000 draws of 100
rows where it is conservative: what little trainings differ is weighed by the t quantile of few seeds."""


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


def share_held(ends: object, truth: float) -> float:
    """Share of the intervals (n, 2) that hold the truth."""
    low, high = np.asarray(ends, dtype=np.float64).T
    return float(np.mean((low <= truth) & (truth <= high)))


def error_of(share: float, n_draws: int = N_DRAWS) -> float:
    """Two standard errors of a share."""
    return 2 * float(np.sqrt(share * (1 - share) / n_draws))


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


@pytest.mark.parametrize(("design", "n_seeds"), HELD)
def test_crossed_interval_of_a_difference_covers_as_often_as_is_said(design: str, n_seeds: int) -> None:
    generator = np.random.default_rng((21, n_seeds))
    a, b = simulate(generator, N_DRAWS, n_seeds, 100, design, (0.3, 0.0))
    truth = true_accuracy(design, 0.3) - true_accuracy(design, 0.0)
    held = HELD[design, n_seeds]
    assert share_held([crossed_mean(d).interval() for d in a - b], truth) == pytest.approx(held, abs=error_of(held))


def test_crossed_interval_of_a_single_run_covers_nominal() -> None:
    generator = np.random.default_rng(12)
    design = "training is certain"
    a, b = simulate(generator, N_DRAWS, 1, 200, design, (0.3, 0.0))
    truth = true_accuracy(design, 0.3) - true_accuracy(design, 0.0)
    assert LOWEST <= share_held([crossed_mean(d).interval() for d in a - b], truth) <= HIGHEST


@pytest.mark.parametrize(
    ("n_runs", "highest"),
    [((3, 3, 3), HIGHEST), ((3, 3, 3, 2, 2), HIGHEST), ((5, 1), HIGHEST), ((3, 3, 1), 0.98), ((5, 1, 1), 1.0)],
)
def test_crossed_interval_over_splits_of_unequal_runs_covers(n_runs: tuple[int, ...], highest: float) -> None:
    # Nominal where splits weigh about the same; of three of which one leads, Kish's number is conservative.
    generator = np.random.default_rng(13)
    splits = np.repeat(np.arange(len(n_runs)), n_runs)
    ends = []
    for _ in range(N_DRAWS):
        of_split = 0.05 + generator.normal(0, 0.05, len(n_runs))
        scores = of_split[splits][:, np.newaxis] + generator.normal(0, 0.01, (len(splits), 20))
        ends.append(crossed_mean(scores, units=splits.tolist()).interval())
    assert LOWEST <= share_held(ends, 0.05) <= highest


@pytest.mark.parametrize(
    ("sizes", "lowest", "highest"),
    [
        ([3] * 40, LOWEST, HIGHEST),
        (list(range(1, 31)), LOWEST, HIGHEST),
        ([20, 20] + [1] * 40, LOWEST, HIGHEST),
        ([10] * 3 + [1] * 30, 0.92, 0.95),  # a little too narrow: 0.935 over 20,000 draws
        ([50] + [1] * 49, 0.99, 1.0),
        ([81] + [1] * 19, 0.99, 1.0),
    ],
)
def test_crossed_interval_over_groups_of_unequal_size_covers(sizes: list[int], lowest: float, highest: float) -> None:
    # Where one group is most of all rows, the others can hardly tell how far it may be off.
    generator = np.random.default_rng(15)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    ends = []
    for _ in range(N_DRAWS):
        scores = 0.1 + generator.normal(0, 0.3, len(sizes))[groups] + generator.normal(0, 0.1, len(groups))
        ends.append(crossed_mean(scores[np.newaxis], groups=groups.tolist()).interval())
    assert lowest <= share_held(ends, 0.1) <= highest


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
    # Conservative: of few splits what the rows vary counts twice in part. 0.96 to 0.984 over 2,000 draws.
    assert LOWEST <= np.mean(by_split) <= 0.99
    assert np.mean(by_run) < np.mean(by_split) - 0.04


@pytest.mark.slow
@pytest.mark.parametrize("n_rows", [100, 500])
@pytest.mark.parametrize("n_seeds", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("design", DESIGNS)
def test_crossed_interval_covers_over_more_designs(design: str, n_seeds: int, n_rows: int) -> None:
    generator = np.random.default_rng((2, n_seeds, n_rows))
    truth = true_accuracy(design, 0.3) - true_accuracy(design, 0.0)
    shares = []
    for _ in range(4):
        a, b = simulate(generator, N_DRAWS, n_seeds, n_rows, design, (0.3, 0.0))
        shares.append(share_held([crossed_mean(d).interval() for d in a - b], truth))
    highest = {"training is certain": 0.957, "models differ much": 0.967}.get(design, 0.995)
    assert 0.95 - error_of(0.95, 4 * N_DRAWS) <= np.mean(shares) <= highest


@pytest.mark.parametrize(
    ("n_seeds", "held"),
    [(3, 0.85), *(pytest.param(*line, marks=pytest.mark.slow) for line in ((2, 0.77), (5, 0.91), (8, 0.93)))],
)
def test_seed_row_bootstrap_is_too_narrow_with_few_seeds(n_seeds: int, held: float) -> None:
    # Why the reports do not lead with it: where trainings differ, it holds the truth too seldom.
    generator = np.random.default_rng(97)
    design = "models differ much"
    a, b = simulate(generator, N_DRAWS, n_seeds, 100, design, (0.3, 0.0))
    truth = true_accuracy(design, 0.3) - true_accuracy(design, 0.0)
    found = [hierarchical_difference(x, y, n_bootstrap=1000, seed=0) for x, y in zip(a, b, strict=True)]
    assert share_held([(f.ci_low, f.ci_high) for f in found], truth) == pytest.approx(held, abs=error_of(held))


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
    assert LOWEST <= np.mean(hits_groups) <= HIGHEST
    assert np.mean(hits_rows) < 0.8


def test_share_interval_over_seeds_is_conservative() -> None:
    generator = np.random.default_rng(5)
    design = "models differ a little"
    (scores,) = simulate(generator, N_DRAWS, 3, 100, design, (1.5,))
    truth = true_accuracy(design, 1.5)
    ends = np.array([share_interval(crossed_mean(s)) for s in scores])
    assert ends.min() >= 0.0
    assert ends.max() <= 1.0
    assert LOWEST <= share_held(ends, truth) <= 0.99  # 0.978 over 2,000 draws


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("group_sd", [0.0, 0.15])
def test_share_interval_over_groups_is_conservative_and_no_wider_than_it_must(group_sd: float, n_seeds: int) -> None:
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
    assert LOWEST <= np.mean(covered) <= 0.99
    assert np.mean(widths) <= 1.1 * np.mean(plain)


@pytest.mark.parametrize(
    ("design", "lowest", "highest"),
    [
        ("training is certain", LOWEST, HIGHEST),
        pytest.param("models differ much", LOWEST, 0.98, marks=pytest.mark.slow),
        pytest.param("models differ a little", LOWEST, 0.995, marks=pytest.mark.slow),
    ],
)
def test_gap_closed_covers(design: str, lowest: float, highest: float) -> None:
    # Of trainings that differ, nominal or more, like the interval of a difference; of the ratios that are defined.
    generator = np.random.default_rng(6)
    sft, arm, oracle = simulate(generator, N_DRAWS, 3, 60, design, (0.0, 0.6, 1.8))
    start, value, end = (true_accuracy(design, gain) for gain in (0.0, 0.6, 1.8))
    truth = (value - start) / (end - start)
    found = [ratio_interval(x - z, y - z) for x, y, z in zip(arm, oracle, sft, strict=True)]
    ends = [(f.ci_low, f.ci_high) for f in found if f.value is not None]
    assert len(ends) > 0.7 * N_DRAWS
    assert lowest <= share_held(ends, truth) <= highest


def test_test_behind_the_gap_closed_covers_nominal() -> None:
    # Fieller's interval holds g exactly where the mean of numerator - g denominator may be zero.
    generator = np.random.default_rng(6)
    design = "models differ a little"
    sft, arm, oracle = simulate(generator, N_DRAWS, 3, 100, design, (0.0, 0.4, 1.0))
    start, value, end = (true_accuracy(design, gain) for gain in (0.0, 0.4, 1.0))
    truth = (value - start) / (end - start)
    assert share_held([crossed_mean(d).interval() for d in (arm - sft) - truth * (oracle - sft)], 0.0) >= LOWEST


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


@pytest.mark.parametrize(("n_rows", "held"), [(40, 0.969), (100, 0.95), (200, 0.95), (400, 0.95)])
def test_paired_difference_of_one_run_covers_nominal(n_rows: int, held: float) -> None:
    # Of 40 rows four or five differ: the exact coverage is 0.969 there, 0.948 with 100 rows, 0.951 with 200.
    generator = np.random.default_rng((9, n_rows))
    design = "training is certain"
    a, b = (x[:, 0] for x in simulate(generator, N_DRAWS, 1, n_rows, design, (0.3, 0.0)))
    truth = true_accuracy(design, 0.3) - true_accuracy(design, 0.0)
    found = [paired_difference(x, y, n_bootstrap=200, seed=0) for x, y in zip(a, b, strict=True)]
    assert share_held([(f.ci_low, f.ci_high) for f in found], truth) == pytest.approx(held, abs=error_of(held))


@pytest.mark.parametrize(("n", "lowest"), [(30, 0.92), (60, 0.925), (100, 0.93)])
def test_tango_interval_covers_nominal_on_average_over_shares(n: int, lowest: float) -> None:
    # Exact: all counts there can be, by their chances. Where under about five rows differ it covers more.
    first, second = (x.ravel() for x in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    first, second = first[first + second <= n], second[first + second <= n]
    ends = np.array([tango_interval(int(x), int(y), n) for x, y in zip(first, second, strict=True)])
    counts = np.stack([first, second, n - first - second], axis=1)
    coverage = []
    for differing in np.linspace(5 / n, 0.6, 12):
        for share in np.linspace(0.05, 0.5, 10):
            shares = np.array([differing * share, differing * (1 - share), 1 - differing])
            held = (ends[:, 0] <= shares[0] - shares[1]) & (shares[0] - shares[1] <= ends[:, 1])
            coverage.append(float(stats.multinomial.pmf(counts, n, shares)[held].sum()))
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.005)
    assert min(coverage) > lowest


@pytest.mark.parametrize("n_rows", [20, 40])
def test_paired_difference_of_graded_scores_covers_nominal(n_rows: int) -> None:
    generator = np.random.default_rng((14, n_rows))
    a = np.clip(generator.normal(0.6, 0.2, (N_DRAWS, n_rows)), 0, 1)
    b = np.clip(a - generator.normal(0.05, 0.1, (N_DRAWS, n_rows)), 0, 1)
    spare = np.clip(generator.normal(0.6, 0.2, 4_000_000), 0, 1)
    truth = float(np.mean(spare - np.clip(spare - generator.normal(0.05, 0.1, len(spare)), 0, 1)))
    found = [paired_difference(x, y, n_bootstrap=1000, seed=i) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    assert LOWEST <= share_held([(f.ci_low, f.ci_high) for f in found], truth) <= HIGHEST


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ([5] * 20, 0.95),
        ([4] * 30, 0.95),
        ([5] * 60, 0.95),
        (list(range(1, 31)), 0.945),
        ([10] * 3 + [1] * 30, 0.9545),
        ([20, 20] + [1] * 40, 0.974),
    ],
)
def test_mean_over_few_groups_covers_as_often_as_is_said(sizes: list[int], held: float) -> None:
    # Nominal of groups of one size, else as measured over 30,000 draws (60,000 of sizes 1 to 30).
    n_draws = 4 * N_DRAWS
    generator = np.random.default_rng((16, len(sizes)))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    ends = []
    for trial in range(n_draws):
        scores = 0.1 + generator.normal(0, 0.3, len(sizes))[groups] + generator.normal(0, 0.1, len(groups))
        found = mean_interval(scores, groups.tolist(), n_bootstrap=1000, seed=trial)
        ends.append((found.ci_low, found.ci_high))
    assert share_held(ends, 0.1) == pytest.approx(held, abs=error_of(held, n_draws))


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
