import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from semievol.compare_stats import (
    crossed_mean,
    ratio_interval,
    share_interval,
    spread,
    value_effect,
)
from semievol.errors import DataError
from semievol.metrics import clopper_pearson_interval, constant_interval, mcnemar_p_value

SCORES = np.random.default_rng(0).normal(0.3, 1.0, (4, 30))


def test_crossed_mean_of_one_run_is_the_t_interval_over_rows() -> None:
    found = crossed_mean(SCORES[:1])
    expected = stats.t.interval(0.95, 29, SCORES[0].mean(), stats.sem(SCORES[0]))
    assert found.interval() == pytest.approx(expected)
    assert found.p_value() == pytest.approx(stats.ttest_1samp(SCORES[0], 0).pvalue, rel=1e-4)


def test_crossed_mean_of_runs_without_row_noise_is_the_t_interval_over_runs() -> None:
    means = np.array([0.1, 0.4, 0.2])
    found = crossed_mean(np.repeat(means[:, np.newaxis], 50, axis=1))
    assert found.interval() == pytest.approx(stats.t.interval(0.95, 2, means.mean(), stats.sem(means)))
    assert found.row_variance == 0.0


def test_equal_runs_say_no_more_than_one() -> None:
    assert crossed_mean(np.repeat(SCORES[:1], 5, axis=0)).interval() == pytest.approx(
        crossed_mean(SCORES[:1]).interval()
    )


def test_variances_are_those_of_two_way_analysis_of_variance() -> None:
    found = crossed_mean(SCORES)
    n_runs, n_rows = SCORES.shape
    rest = SCORES - SCORES.mean(1, keepdims=True) - SCORES.mean(0) + SCORES.mean()
    assert found.run_variance == pytest.approx(SCORES.mean(1).var(ddof=1) / n_runs)
    assert found.row_variance == pytest.approx(SCORES.mean(0).var(ddof=1) / n_rows)
    assert found.cell_variance == pytest.approx((rest**2).sum() / ((n_runs - 1) * (n_rows - 1)) / (n_runs * n_rows))


def test_interval_is_never_narrower_than_that_over_run_means() -> None:
    low, high = crossed_mean(SCORES).interval()
    means = SCORES.mean(1)
    expected = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
    assert low <= expected[0] + 1e-12
    assert high >= expected[1] - 1e-12


def test_groups_of_one_row_change_nothing() -> None:
    grouped = crossed_mean(SCORES, groups=[f"g{i}" for i in range(30)])
    assert grouped.interval() == pytest.approx(crossed_mean(SCORES).interval())


def test_runs_of_one_split_count_as_one_unit() -> None:
    means = np.array([0.1, 0.1, 0.4, 0.4, 0.2, 0.2])
    scores = np.repeat(means[:, np.newaxis], 20, axis=1)
    found = crossed_mean(scores, units=["a", "a", "b", "b", "c", "c"])
    assert found.interval() == pytest.approx(stats.t.interval(0.95, 2, means.mean(), stats.sem([0.1, 0.4, 0.2])))


def test_runs_on_different_rows_weigh_the_same() -> None:
    scores = np.array([[1.0, 0.0, np.nan, np.nan], [np.nan, 1.0, 1.0, 1.0]])
    found = crossed_mean(scores)
    assert found.mean == pytest.approx(0.75)
    assert found.row_variance > 0


@pytest.mark.parametrize(
    "scores", [np.empty((0, 3)), np.ones(3), [[np.nan, 1.0], [np.nan, 0.0]], [[1.0, 0.0], [np.nan, np.nan]]]
)
def test_crossed_mean_refuses_what_has_no_mean(scores: object) -> None:
    with pytest.raises(DataError, match="crossed_mean"):
        crossed_mean(scores)


def test_crossed_mean_refuses_groups_of_other_rows() -> None:
    with pytest.raises(DataError, match="2 groups for 30"):
        crossed_mean(SCORES, groups=["a", "b"])


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(-1, 1))
@settings(max_examples=60, deadline=None)
def test_p_value_is_where_the_interval_reaches_zero(seed: int, n_runs: int, shift: float) -> None:
    found = crossed_mean(np.random.default_rng(seed).normal(shift, 1.0, (n_runs, 25)))
    p_value = found.p_value()
    assert 0 < p_value <= 1
    if 1e-9 < p_value < 1:
        assert found.half_width(1 - p_value) == pytest.approx(abs(found.mean), rel=1e-4)


def test_p_value_of_no_difference_is_one_and_of_a_constant_one_that_of_signs() -> None:
    assert crossed_mean(np.zeros((3, 10))).p_value() == 1.0
    assert crossed_mean(np.ones((3, 10))).p_value() == pytest.approx(2 * 0.5**10)


def test_detectable_difference_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(1)
    truth = crossed_mean([[-1.0, 1.0] * 200]).detectable()
    found = [crossed_mean(generator.normal(truth, 1.0, (1, 400))) for _ in range(600)]
    assert np.mean([f.interval()[0] > 0 for f in found]) == pytest.approx(0.8, abs=0.04)


def test_share_interval_of_one_run_is_close_to_clopper_pearson() -> None:
    hits = np.r_[np.ones(30), np.zeros(70)]
    assert share_interval(crossed_mean(hits[np.newaxis])) == pytest.approx(clopper_pearson_interval(30, 100), abs=0.004)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_share_interval_of_all_or_none_is_that_of_its_rows(value: float) -> None:
    found = share_interval(crossed_mean(np.full((3, 40), value)))
    assert found == pytest.approx(clopper_pearson_interval(int(40 * value), 40))


def test_share_interval_counts_equal_runs_once() -> None:
    hits = np.r_[np.ones(30), np.zeros(70)][np.newaxis]
    assert share_interval(crossed_mean(np.repeat(hits, 5, axis=0))) == pytest.approx(
        share_interval(crossed_mean(hits)), abs=1e-9
    )


def test_ratio_of_proportional_differences_is_not_defined() -> None:
    below = SCORES + 2
    found = ratio_interval(0.5 * below, below)
    assert (found.value, found.ci_low, found.ci_high) == (None, None, None)
    assert found.reason == "the ratio is the same on every row"


def test_ratio_whose_interval_has_no_end_is_not_defined() -> None:
    # The interval of the denominator all but reaches zero, so a ratio of millions is still inside.
    generator = np.random.default_rng(2)
    rows = generator.normal(0, 1, 60)
    rows -= rows.mean()
    below = rows + (1 + 1e-13) * crossed_mean(rows[np.newaxis]).half_width()
    found = ratio_interval(generator.normal(0.2, 1, (1, 60)), below[np.newaxis])
    assert (found.value, found.ci_low, found.ci_high) == (None, None, None)
    assert found.reason == "its interval has no end"


@pytest.mark.parametrize("shift", [0.0, -2.0])
def test_ratio_is_not_defined_where_the_denominator_may_be_zero_or_less(shift: float) -> None:
    below = SCORES - SCORES.mean() + shift
    found = ratio_interval(SCORES, below)
    assert (found.value, found.ci_low, found.ci_high) == (None, None, None)
    assert "denominator" in found.reason


@pytest.mark.parametrize("n", [4, 5, 6, 20])
def test_interval_of_a_constant_difference_leaves_out_zero_where_mcnemar_does(n: int) -> None:
    low, high = constant_interval(1.0, n)
    assert (low, high) == pytest.approx((2 * clopper_pearson_interval(n, n)[0] - 1, 1.0))
    assert (low > 0) == (mcnemar_p_value(np.ones(n), np.zeros(n)) <= 0.05)
    assert constant_interval(-1.0, n) == pytest.approx((-high, -low))


def test_interval_of_no_difference_is_that_of_a_share_of_none_to_both_sides() -> None:
    bound = clopper_pearson_interval(0, 40)[1]
    assert constant_interval(0.0, crossed_mean(np.zeros((3, 40))).n_equal_units) == pytest.approx((-bound, bound))


def test_units_of_equal_weight_keep_the_usual_factor_and_degrees_of_freedom() -> None:
    found = crossed_mean(np.repeat(SCORES, 2, axis=1), groups=np.repeat(np.arange(30), 2).tolist(), units=list("aabb"))
    by_split, by_group = SCORES.mean(1).reshape(2, 2).mean(1), SCORES.mean(0)
    assert (found.run_degrees, found.row_degrees) == pytest.approx((1, 29), rel=1e-12)
    assert found.run_variance == pytest.approx(by_split.var(ddof=1) / 2, rel=1e-12)
    assert found.row_variance == pytest.approx(by_group.var(ddof=1) / 30, rel=1e-12)


@pytest.mark.parametrize("sizes", [[5, 1, 1], [20, 20] + [1] * 40, [81] + [1] * 19])
def test_variance_of_units_of_unequal_weight_is_unbiased(sizes: list[int]) -> None:
    generator = np.random.default_rng(3)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    shares = np.array(sizes) / sum(sizes)
    found = [
        crossed_mean(generator.normal(0, 1, len(sizes))[groups][np.newaxis], groups=groups.tolist())
        for _ in range(4000)
    ]
    assert np.mean([f.row_variance for f in found]) == pytest.approx((shares**2).sum(), rel=0.08)
    assert found[0].row_degrees == pytest.approx(max(1.0, 1 / (shares**2).sum() - 1))


def test_share_interval_of_all_counts_one_large_group_for_no_more_than_it_is() -> None:
    even, uneven = np.repeat(np.arange(20), 5), np.repeat(np.arange(20), [81] + [1] * 19)
    low = [share_interval(crossed_mean(np.ones((1, 100)), groups=groups.tolist()))[0] for groups in (even, uneven)]
    assert low[0] == pytest.approx(clopper_pearson_interval(20, 20)[0])
    assert low[1] == pytest.approx(clopper_pearson_interval(2, 2)[0])


def test_spread_needs_two_values() -> None:
    assert spread([0.5]) is None
    assert spread([0.4, 0.6]) == pytest.approx(np.sqrt(0.02))


def test_value_effect_of_two_values_is_the_paired_t_test() -> None:
    table = np.random.default_rng(3).normal(0.7, 0.05, (6, 2))
    found = value_effect(table)
    assert found is not None
    assert found.p_value == pytest.approx(stats.ttest_rel(table[:, 0], table[:, 1]).pvalue)
    difference = table[:, 0] - table[:, 1]
    assert found.chance_sd == pytest.approx(stats.sem(difference) / np.sqrt(2))


def test_value_effect_of_a_published_table() -> None:
    """Snedecor and Cochran 1989, Statistical Methods, table 14.2.1: 5 treatments of soybean seeds, 5 blocks."""
    failures = [[8, 2, 4, 3, 9], [10, 6, 10, 5, 7], [12, 7, 9, 9, 5], [13, 11, 8, 10, 5], [11, 5, 10, 6, 3]]
    found = value_effect(failures)
    assert found is not None
    assert found.p_value == pytest.approx(stats.f.sf(20.96 / 5.41, 4, 16), rel=5e-3)
    assert found.chance_sd == pytest.approx(np.sqrt(5.41 / 5), rel=1e-3)


@pytest.mark.parametrize(
    "table", [[[0.7, 0.8, 0.9]], [[0.7], [0.8]], [[0.7, 0.8], [0.6, 0.7]], [[0.7, 0.7], [0.8, 0.8]]]
)
def test_value_effect_needs_units_values_and_chance(table: list[list[float]]) -> None:
    assert value_effect(table) is None
