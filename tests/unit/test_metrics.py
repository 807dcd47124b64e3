import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, special, stats
from sklearn.metrics import f1_score

from semievol import metrics
from semievol.errors import DataError
from semievol.metrics import (
    accuracy_interval,
    area_under_risk_coverage,
    brier_score,
    clopper_pearson_interval,
    expected_calibration_error,
    hierarchical_difference,
    histogram_counts,
    holm,
    macro_f1,
    mcnemar_p_value,
    mean_interval,
    minimum_detectable_difference,
    paired_difference,
    precision_by_coverage,
    risk_coverage,
    share_ties,
    tango_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (81, 263), (10, 10), (500, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_share_intervals_agree_with_scipy(successes: int, n: int, confidence: float) -> None:
    test = stats.binomtest(successes, n)
    wilson, exact = test.proportion_ci(confidence, "wilson"), test.proportion_ci(confidence, "exact")
    assert wilson_interval(successes, n, confidence) == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    assert clopper_pearson_interval(successes, n, confidence) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_wilson_interval_gives_published_value() -> None:
    # Newcombe 1998, table I: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(st.integers(1, 2000), st.data())
@settings(max_examples=100, deadline=None)
def test_share_intervals_hold_the_share(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    for low, high in (wilson_interval(successes, n), clopper_pearson_interval(successes, n)):
        assert 0.0 <= low <= successes / n <= high <= 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_share_intervals_refuse_impossible_counts(successes: int, n: int) -> None:
    for interval in (wilson_interval, clopper_pearson_interval):
        with pytest.raises(DataError, match="no interval"):
            interval(successes, n)


def test_mean_interval_is_close_to_normal_theory() -> None:
    scores = np.random.default_rng(0).beta(2, 3, size=800)
    half = 1.96 * scores.std() / np.sqrt(800)
    result = mean_interval(scores, n_bootstrap=4000, seed=1)
    assert result.value == pytest.approx(scores.mean())
    assert (result.ci_low, result.ci_high) == pytest.approx(
        (scores.mean() - half, scores.mean() + half), abs=0.1 * half
    )


def test_mean_interval_widens_for_groups_that_are_alike() -> None:
    scores = np.repeat(np.random.default_rng(0).random(40), 10)
    groups = [f"g{i // 10}" for i in range(400)]
    rows = mean_interval(scores, n_bootstrap=2000, seed=1)
    grouped = mean_interval(scores, groups, n_bootstrap=2000, seed=1)
    ratio = (grouped.ci_high - grouped.ci_low) / (rows.ci_high - rows.ci_low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.1)


def test_mean_interval_does_not_depend_on_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.linspace(0, 1, 50)
    whole = mean_interval(scores, n_bootstrap=300, seed=3)
    monkeypatch.setattr(metrics, "_BLOCK_CELLS", 70)
    assert mean_interval(scores, n_bootstrap=300, seed=3) == whole


def test_accuracy_interval_is_wilson_for_independent_hits() -> None:
    scores = [1.0] * 7 + [0.0] * 3
    result = accuracy_interval(scores, n_bootstrap=200, seed=0)
    assert (result.ci_low, result.ci_high) == wilson_interval(7, 10)
    assert accuracy_interval(scores, [str(i) for i in range(10)], n_bootstrap=200, seed=0) == result


def test_accuracy_interval_resamples_groups_and_graded_scores() -> None:
    hits = [1.0, 1.0, 0.0, 0.0]
    assert accuracy_interval(hits, "aabb", n_bootstrap=300, seed=0) == mean_interval(
        hits, "aabb", n_bootstrap=300, seed=0
    )
    graded = [0.5, 0.25, 1.0]
    assert accuracy_interval(graded, n_bootstrap=300, seed=0) == mean_interval(graded, n_bootstrap=300, seed=0)


def test_mcnemar_p_value_is_binomial_on_rows_that_differ() -> None:
    a = [1] * 9 + [0] * 1 + [1] * 20
    b = [0] * 9 + [1] * 1 + [1] * 20
    # 2 * (C(10, 0) + C(10, 1)) / 2 ** 10
    assert mcnemar_p_value(a, b) == pytest.approx(22 / 1024)
    assert mcnemar_p_value(b, a) == pytest.approx(22 / 1024)
    assert mcnemar_p_value(a, a) == 1.0


def test_mcnemar_p_value_refuses_graded_scores() -> None:
    with pytest.raises(DataError, match="0 or 1"):
        mcnemar_p_value([0.5], [1.0])


@pytest.mark.parametrize(
    ("first", "second", "n", "confidence", "ends"),
    [
        (1, 7, 21, 0.95, (-0.517, -0.026)),  # Fagerland, Lydersen and Laake 2014, table V
        (7, 1, 21, 0.95, (0.026, 0.517)),
        (28, 25, 618, 0.9, (-0.0148, 0.0247)),  # scoreci.mp(25, 28, 618, 0.9) of the R package PropCIs 0.3
    ],
)
def test_tango_interval_gives_published_values(
    first: int, second: int, n: int, confidence: float, ends: tuple[float, float]
) -> None:
    digits = len(str(ends[1]).split(".")[1])
    assert tuple(round(end, digits) for end in tango_interval(first, second, n, confidence)) == ends


@pytest.mark.parametrize(("first", "second", "n"), [(3, 9, 40), (12, 12, 24), (5, 0, 300), (60, 21, 90)])
def test_tango_interval_ends_where_the_score_test_turns(first: int, second: int, n: int) -> None:
    # The share that only the second gets right is found here by maximising the likelihood, not by its formula.
    for end in tango_interval(first, second, n):
        counts = np.array([first, second, n - first - second])

        def log_likelihood(q: float, end: float = end, counts: NDArray[np.int64] = counts) -> float:
            return float(special.xlogy(counts, np.maximum([q + end, q, 1 - 2 * q - end], 0)).sum())

        bounds = (max(0.0, -end), (1 - end) / 2)
        q = optimize.minimize_scalar(lambda q: -log_likelihood(q), bounds=bounds, options={"xatol": 1e-12}).x
        statistic = (first - second - n * end) / np.sqrt(n * (2 * q + end * (1 - end)))
        assert abs(statistic) == pytest.approx(stats.norm.ppf(0.975), rel=1e-3)


def test_tango_interval_of_rows_all_to_one_side_stays_in_range() -> None:
    z_squared = stats.norm.ppf(0.975) ** 2
    assert tango_interval(20, 0, 20) == pytest.approx(((20 - z_squared) / (20 + z_squared), 1.0))
    assert tango_interval(0, 20, 20) == pytest.approx((-1.0, -(20 - z_squared) / (20 + z_squared)))
    assert tango_interval(0, 0, 20) == pytest.approx((-wilson_interval(0, 20)[1], wilson_interval(0, 20)[1]))


@pytest.mark.parametrize(("first", "second", "n"), [(-1, 2, 5), (2, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_tango_interval_refuses_counts_that_are_not_of_the_rows(first: int, second: int, n: int) -> None:
    with pytest.raises(DataError, match=r"rows that only one gets right|no interval"):
        tango_interval(first, second, n)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 400))
def test_interval_of_hits_leaves_out_zero_wherever_mcnemar_rejects(first: int, second: int, n_ties: int) -> None:
    a = np.r_[np.ones(first), np.zeros(second + n_ties)]
    b = np.r_[np.zeros(first), np.ones(second), np.zeros(n_ties)]
    found = paired_difference(a, b, n_bootstrap=200, seed=0)
    assert -1 <= found.ci_low <= found.difference <= found.ci_high <= 1
    leaves_out = not found.ci_low <= 0 <= found.ci_high
    assert leaves_out or found.p_value > 0.05
    assert not leaves_out or found.p_value <= 0.125  # four rows to one side: z = 2


@pytest.mark.parametrize(("groups", "n_units"), [(None, 8), ("aabbccdd", 4), ("aaaaabcd", 64 / 28)])
@pytest.mark.parametrize("score", [1.0, 0.5])
def test_paired_difference_of_same_scores_is_not_certain(score: float, groups: str | None, n_units: float) -> None:
    result = paired_difference([score, 0] * 4, [score, 0] * 4, groups=groups, n_bootstrap=200, seed=0)
    bound = 1 - 0.025 ** (1 / n_units)
    assert (result.difference, result.p_value, result.n) == (0.0, 1.0, 8)
    assert (result.ci_low, result.ci_high) == pytest.approx((-bound, bound))


def test_paired_difference_uses_mcnemar_for_hits() -> None:
    a, b = np.r_[np.ones(30), np.zeros(10), np.ones(60)], np.r_[np.zeros(30), np.ones(10), np.ones(60)]
    result = paired_difference(a, b, n_bootstrap=4000, seed=0)
    assert result.difference == pytest.approx(0.2)
    assert result.p_value == pytest.approx(stats.binomtest(30, 40).pvalue)
    assert (result.ci_low, result.ci_high) == tango_interval(30, 10, 100)
    half = 1.96 * np.sqrt((0.4 - 0.04) / 100)
    assert (result.ci_low, result.ci_high) == pytest.approx((0.2 - half, 0.2 + half), abs=0.015)


def test_paired_difference_enumerates_sign_flips_of_few_graded_rows() -> None:
    # All five differences point the same way: 2 of 2 ** 5 sign patterns are as extreme.
    result = paired_difference([0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.45], n_bootstrap=200, seed=0)
    assert result.p_value == pytest.approx(2 / 32)


def test_paired_difference_tests_groups_not_rows() -> None:
    a, b = np.ones(30), np.r_[np.zeros(30)]
    result = paired_difference(a, b, groups=[i // 10 for i in range(30)], n_bootstrap=200, seed=0)
    assert result.p_value == pytest.approx(2 / 8)


def test_paired_difference_draws_sign_flips_of_many_rows() -> None:
    generator = np.random.default_rng(0)
    b = generator.random(200)
    same = paired_difference(b + generator.normal(0, 0.1, 200), b, n_bootstrap=2000, seed=0)
    better = paired_difference(b + 0.05 + generator.normal(0, 0.1, 200), b, n_bootstrap=2000, seed=0)
    assert same.p_value > 0.05
    assert better.p_value == pytest.approx(1 / 2001)


def test_paired_difference_is_the_same_for_the_same_seed() -> None:
    a, b = np.random.default_rng(0).random((2, 60))
    assert paired_difference(a, b, n_bootstrap=300, seed=5) == paired_difference(a, b, n_bootstrap=300, seed=5)
    assert paired_difference(a, b, n_bootstrap=300, seed=5) != paired_difference(a, b, n_bootstrap=300, seed=6)


def test_paired_difference_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    n_trials, n_rows, hits, rejected = 1000, 200, 0, 0
    for trial in range(n_trials):
        # 12% of rows only a gets right, 7% only b: the truth is 0.05.
        kind = generator.random(n_rows)
        a, b = (kind < 0.12) | (kind > 0.5), ((kind >= 0.12) & (kind < 0.19)) | (kind > 0.5)
        result = paired_difference(a, b, n_bootstrap=300, seed=trial)
        hits += result.ci_low <= 0.05 <= result.ci_high
    assert abs(hits / n_trials - 0.95) < 2 * np.sqrt(0.95 * 0.05 / n_trials)
    for _ in range(n_trials):
        kind = generator.random(n_rows)
        rejected += mcnemar_p_value(kind < 0.1, (kind >= 0.1) & (kind < 0.2)) <= 0.05
    assert rejected / n_trials < 0.05 + 2 * np.sqrt(0.95 * 0.05 / n_trials)


def test_grouped_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(13)
    n_trials, n_groups, hits = 1000, 120, 0
    groups = [i // 5 for i in range(5 * n_groups)]
    for trial in range(n_trials):
        share = np.repeat(generator.normal(0.02, 0.1, n_groups), 5) + generator.normal(0, 0.1, 5 * n_groups)
        result = mean_interval(share, groups, n_bootstrap=1000, seed=trial)
        hits += result.ci_low <= 0.02 <= result.ci_high
    assert abs(hits / n_trials - 0.95) < 2 * np.sqrt(0.95 * 0.05 / n_trials)


def test_hierarchical_difference_holds_seed_noise() -> None:
    generator = np.random.default_rng(0)
    rows = generator.random(300)
    noise = generator.normal(0.02, 0.05, size=(6, 1))
    result = hierarchical_difference(rows + noise, np.tile(rows, (6, 1)), n_bootstrap=2000, seed=0)
    alone = paired_difference(rows + noise[0], rows, n_bootstrap=2000, seed=0)
    assert result.difference == pytest.approx(noise.mean())
    assert result.ci_high - result.ci_low == pytest.approx(2 * 1.96 * noise.std() / np.sqrt(6), rel=0.15)
    assert alone.ci_high - alone.ci_low == pytest.approx(2 * (1 - 0.025 ** (1 / 300)))  # of a constant difference
    assert 0 < result.p_value <= 1


def test_hierarchical_difference_of_one_seed_is_that_of_its_rows() -> None:
    a, b = np.random.default_rng(0).random((2, 50))
    one, rows = (
        hierarchical_difference([a], [b], n_bootstrap=500, seed=2),
        paired_difference(a, b, n_bootstrap=500, seed=2),
    )
    # The same draws; the percentiles of the single run are a little further apart, as 50 rows need.
    assert one.difference == pytest.approx(rows.difference)
    assert rows.ci_low < one.ci_low < one.ci_high < rows.ci_high
    assert one.ci_high - one.ci_low == pytest.approx(rows.ci_high - rows.ci_low, rel=0.1)


def test_hierarchical_difference_resamples_splits_before_the_seeds_inside() -> None:
    generator = np.random.default_rng(1)
    of_split = np.repeat(generator.normal(0.02, 0.05, 8), 3)
    scores = of_split[:, np.newaxis] + np.zeros((24, 50))
    splits = np.repeat(np.arange(8), 3).tolist()
    ends = {}
    for name, units in (("splits", splits), ("runs", None)):
        found = hierarchical_difference(scores, np.zeros_like(scores), units=units, n_bootstrap=4000, seed=0)
        ends[name] = found.ci_high - found.ci_low
    sd = of_split[::3].std()
    assert ends["splits"] == pytest.approx(2 * 1.96 * sd / np.sqrt(8), rel=0.1)
    assert ends["runs"] == pytest.approx(2 * 1.96 * sd / np.sqrt(24), rel=0.1)


def test_hierarchical_difference_takes_runs_that_answered_other_rows() -> None:
    generator = np.random.default_rng(2)
    scores = np.full((2, 400), np.nan)
    scores[0, :200], scores[1, 200:] = generator.normal(0.1, 1, 200), generator.normal(0.3, 1, 200)
    splits = [0, 1]
    found = hierarchical_difference(scores, scores - scores, units=splits, n_bootstrap=500, seed=0)
    assert found.difference == pytest.approx((np.nanmean(scores[0]) + np.nanmean(scores[1])) / 2)
    assert found.ci_low < found.difference < found.ci_high


def test_hierarchical_difference_refuses_other_shapes() -> None:
    with pytest.raises(DataError, match="shape"):
        hierarchical_difference(np.ones((2, 3)), np.ones((3, 3)), n_bootstrap=200, seed=0)


@pytest.mark.parametrize(
    ("a", "message"),
    [
        ([[1, np.nan], [1, 1]], "in a and b alike"),
        ([[np.nan, np.nan], [1, 1]], "in a and b alike"),
        ([[np.inf, 1], [1, 1]], "NaN or infinite"),
    ],
)
def test_hierarchical_difference_refuses_scores_that_are_missing_on_one_side(a: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        hierarchical_difference(a, np.ones((2, 2)), n_bootstrap=200, seed=0)


def test_hierarchical_difference_refuses_a_run_without_scores() -> None:
    a = [[np.nan, np.nan], [1, 1]]
    with pytest.raises(DataError, match="a seed or a row has no score"):
        hierarchical_difference(a, a, n_bootstrap=200, seed=0)


def test_holm_gives_values_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04; made monotone: .02 .03 .06 .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_holm_is_between_raw_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert np.all(adjusted >= np.array(p_values))
    assert np.all(adjusted <= np.minimum(1, len(p_values) * np.array(p_values)) + 1e-12)


def test_minimum_detectable_difference_has_the_power_it_says() -> None:
    n, discordant = 500, 0.2
    d = minimum_detectable_difference(n, discordant)
    generator = np.random.default_rng(3)
    wins, losses, _ = generator.multinomial(
        n, [(discordant + d) / 2, (discordant - d) / 2, 1 - discordant], size=4000
    ).T
    power = np.mean(np.abs(wins - losses) / np.sqrt(wins + losses) > 1.96)
    assert power == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("n", "discordant"), [(350, 2 / 350), (350, 0.0), (200, 0.02), (60, 0.0), (8, 0.0)])
def test_minimum_detectable_difference_of_few_differing_rows_is_found_by_the_exact_test(
    n: int, discordant: float
) -> None:
    d = minimum_detectable_difference(n, discordant)
    assert d > discordant
    wins = np.random.default_rng(4).binomial(n, d, size=4000)  # all rows that differ do so to one side
    found = [mcnemar_p_value(np.arange(n) < k, np.zeros(n)) <= 0.05 for k in wins]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_minimum_detectable_difference_shrinks_with_rows_and_is_at_most_one() -> None:
    values = [minimum_detectable_difference(n, 0.1) for n in (100, 1000, 10_000)]
    assert values == sorted(values, reverse=True)
    assert minimum_detectable_difference(5, 0.2) == 1.0
    assert minimum_detectable_difference(200, 0.2) == pytest.approx(2.8 * np.sqrt(0.2 / 200), rel=0.03)


def test_macro_f1_agrees_with_scikit_learn() -> None:
    targets, answers = list("aabbccab"), list("abbbcaac")
    assert macro_f1(targets, answers) == pytest.approx(f1_score(targets, answers, average="macro"))


def test_macro_f1_counts_unparsed_as_a_miss() -> None:
    assert macro_f1(["a", "a", "b"], ["a", None, "b"]) == pytest.approx((2 / 3 + 1) / 2)


def test_macro_f1_is_over_the_classes_of_the_targets() -> None:
    targets, answers = ["a"] * 50 + ["b"] * 50, ["a"] * 50 + ["b"] * 49 + ["c"]
    assert macro_f1(targets, answers) == pytest.approx(f1_score(targets, answers, average="macro", labels=["a", "b"]))
    assert macro_f1(targets, answers) == pytest.approx((1 + 98 / 99) / 2)


def test_expected_calibration_error_uses_bins_of_equal_mass() -> None:
    confidence, correct = [0.9, 0.6, 0.8, 0.5], [1, 0, 1, 1]
    # Bins {.5, .6} and {.8, .9}: |.5 - .55| / 2 + |1 - .85| / 2.
    assert expected_calibration_error(confidence, correct, n_bins=2) == pytest.approx(0.1)
    assert expected_calibration_error(confidence, correct, n_bins=1) == pytest.approx(0.05)
    # More bins than rows: one bin a row.
    assert expected_calibration_error(confidence, correct) == pytest.approx((0.1 + 0.6 + 0.2 + 0.5) / 4)


def test_expected_calibration_error_does_not_depend_on_the_order_of_ties() -> None:
    assert expected_calibration_error([0.8] * 100, [1] * 80 + [0] * 20) == pytest.approx(0.0, abs=1e-12)
    generator = np.random.default_rng(0)
    votes = generator.integers(1, 6, 300) / 5
    hits = (generator.random(300) < votes).astype(float)
    whole = expected_calibration_error(votes, hits)
    for _ in range(20):
        order = generator.permutation(300)
        assert expected_calibration_error(votes[order], hits[order]) == pytest.approx(whole)


def test_share_ties_gives_rows_of_one_key_their_mean() -> None:
    assert share_ties([2, 1, 2], [1, 0, 0]).tolist() == [0.5, 0.0, 0.5]


def test_brier_score_is_mean_squared_gap() -> None:
    assert brier_score([0.9, 0.6], [1, 0]) == pytest.approx((0.01 + 0.36) / 2)


def test_risk_coverage_by_hand() -> None:
    coverage, risk = risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
    assert coverage == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert area_under_risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]) == pytest.approx(1 / 3)


def test_risk_coverage_does_not_depend_on_order_of_ties() -> None:
    assert risk_coverage([1, 1, 0], [1, 0, 1])[1] == pytest.approx([1 / 2, 1 / 2, 1 / 3])
    assert risk_coverage([1, 1, 0], [0, 1, 1])[1] == pytest.approx([1 / 2, 1 / 2, 1 / 3])
    assert area_under_risk_coverage([-3.0] * 4, [1, 0, 0, 0]) == pytest.approx(0.75)


def test_precision_by_coverage_keeps_the_surest_rows() -> None:
    points = precision_by_coverage([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (0.01, 0.5, 1.0))
    assert points == [(0.01, 1.0), (0.5, 0.5), (1.0, 0.5)]
    with pytest.raises(DataError, match="coverage 0"):
        precision_by_coverage([0.9], [1], (0.0,))


def test_histogram_counts_counts_every_value() -> None:
    counts, edges = histogram_counts([0.0, 0.1, 0.6, 1.0], n_bins=2, value_range=(0.0, 1.0))
    assert counts.tolist() == [2, 2]
    assert edges.tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(DataError, match="do not fit"):
        histogram_counts([2.0], value_range=(0.0, 1.0))


EMPTY_CALLS = {
    "mean_interval": lambda: mean_interval([], n_bootstrap=200, seed=0),
    "accuracy_interval": lambda: accuracy_interval([], n_bootstrap=200, seed=0),
    "paired_difference": lambda: paired_difference([], [], n_bootstrap=200, seed=0),
    "hierarchical_difference": lambda: hierarchical_difference(
        np.ones((0, 3)), np.ones((0, 3)), n_bootstrap=200, seed=0
    ),
    "mcnemar_p_value": lambda: mcnemar_p_value([], []),
    "holm": lambda: holm([]),
    "macro_f1": lambda: macro_f1([], []),
    "ece": lambda: expected_calibration_error([], []),
    "brier": lambda: brier_score([], []),
    "risk_coverage": lambda: risk_coverage([], []),
    "histogram": lambda: histogram_counts([]),
    "detectable": lambda: minimum_detectable_difference(0, 0.1),
}


@pytest.mark.parametrize("call", EMPTY_CALLS.values(), ids=EMPTY_CALLS.keys())
def test_metrics_refuse_to_measure_nothing(call: object) -> None:
    assert callable(call)
    with pytest.raises(DataError):
        call()


@pytest.mark.parametrize(
    "function", [mcnemar_p_value, macro_f1, expected_calibration_error, brier_score, risk_coverage]
)
def test_metrics_refuse_lengths_that_differ(function: object) -> None:
    assert callable(function)
    with pytest.raises(DataError, match=r"2 .* 1|same rows"):
        function([1, 0], [1])


def test_metrics_refuse_nan_and_confidence_out_of_range() -> None:
    with pytest.raises(DataError, match="NaN"):
        mean_interval([1.0, float("nan")], n_bootstrap=200, seed=0)
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        brier_score([1.5], [1])
    with pytest.raises(DataError, match="3 groups for 2 rows"):
        mean_interval([1.0, 0.0], "abc", n_bootstrap=200, seed=0)
