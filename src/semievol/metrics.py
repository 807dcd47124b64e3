"""Measures of answers and of confidence, with intervals and paired tests. NumPy and SciPy, pure functions.

No function takes an empty set for 0: no rows, lengths that differ, NaN and values out of range raise DataError. Rows of
one `group` (document, customer) are not independent, so wherever groups are given whole groups are resampled. Bootstrap
draws work on one sum and one count a group and come in blocks, so memory stays bounded.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semievol.errors import DataError

Floats = NDArray[np.float64]
Groups = Sequence[Hashable]

_BLOCK_CELLS = 1_000_000
"""Most random numbers drawn at a time (8 MB), but always those of one draw."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    ci_low: float
    ci_high: float
    n: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of a - b over the same rows, with its interval and the two-sided p-value of no difference."""

    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    n: int
    n_differing: int
    """Rows whose scores are not the same."""
    detectable: float | None = None
    """True difference that rows like these would show four times in five; None over several seeds."""


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927; preferred for small n by Brown, Cai and DasGupta 2001).

    Raises:
        DataError: If n < 1, or successes is not in 0..n.
    """
    _check_counts(successes, n, confidence)
    from scipy import stats  # takes most of a second to import

    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share, denominator = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / denominator
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / denominator
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return max(0.0, low), min(1.0, high)


def clopper_pearson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share (Clopper and Pearson 1934): covers at least `confidence`, usually more.

    Raises:
        DataError: If n < 1, or successes is not in 0..n.
    """
    _check_counts(successes, n, confidence)
    from scipy import stats

    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def mean_interval(
    scores: ArrayLike, groups: Groups | None = None, *, n_bootstrap: int, seed: int, confidence: float = 0.95
) -> Interval:
    """Mean of graded scores with a percentile bootstrap over rows, or over whole groups.

    Percentile, because it respects the range of the scores and needs no variance of a ratio; expanded (Hesterberg 2015,
    The American Statistician 69) by what the t quantile and n / (n - 1) add for few rows or groups, of which groups of
    unequal size count as fewer (Kish 1965). A constant score gives an interval of width 0.
    """
    values = _as_vector("scores", scores)
    draws = _bootstrap_means(values[np.newaxis], groups, n_bootstrap=n_bootstrap, seed=seed)[:, 0]
    low, high = _percentiles(draws, confidence, n_units=max(2.0, _count_equal_units(groups, len(values))))
    return Interval(float(values.mean()), low, high, len(values))


def accuracy_interval(
    scores: ArrayLike, groups: Groups | None = None, *, n_bootstrap: int, seed: int, confidence: float = 0.95
) -> Interval:
    """Mean of scores: Wilson where all are 0 or 1 and no two rows share a group, else that of `mean_interval`."""
    values = _as_vector("scores", scores)
    if _is_binary(values) and (groups is None or len(set(groups)) == len(groups) == len(values)):
        low, high = wilson_interval(int(values.sum()), len(values), confidence)
        return Interval(float(values.mean()), low, high, len(values))
    return mean_interval(values, groups, n_bootstrap=n_bootstrap, seed=seed, confidence=confidence)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, groups: Groups | None = None, n_bootstrap: int, seed: int, confidence: float = 0.95
) -> PairedDifference:
    """Mean of a - b over the same rows, with an interval and a test.

    0/1 scores of independent rows: Tango's score interval and exact McNemar (two-sided binomial on the rows that
    differ). The interval is nominal and the test holds its level for certain, so at the edge, mostly where few rows
    differ, the interval may leave out zero where the test does not reject.

    Graded scores, and rows in groups: the percentile bootstrap of `mean_interval`, and the sign-flip permutation test
    over rows or groups, enumerated up to 12 units that differ and drawn `n_bootstrap` times beyond, as
    (hits + 1) / (draws + 1). Percentile, not BCa: where few rows differ the acceleration of BCa is unstable.

    Where no row differs, or all by the same, the interval is that of `constant_interval`. The detectable difference is
    that of McNemar's test for 0/1 scores of independent rows; otherwise 1.96 + 0.84 of the standard errors that the
    interval shows, for 0/1 scores no less than the exact test needs.
    """
    first, second = _as_pair(a, b)
    differences = first - second
    n, mean = len(differences), float(differences.mean())
    positions, n_groups = _group_positions(groups, n)
    is_share = groups is None and _is_binary(first) and _is_binary(second)
    if np.ptp(differences) < 1e-12:
        low, high = constant_interval(mean, _count_equal_units(groups, n), confidence)
    elif is_share:
        low, high = tango_interval(int((differences > 0).sum()), int((differences < 0).sum()), n, confidence)
    else:
        drawn = mean_interval(differences, groups, n_bootstrap=n_bootstrap, seed=seed, confidence=confidence)
        low, high = drawn.ci_low, drawn.ci_high
    n_differing = int(np.count_nonzero(differences))
    if is_share:
        p_value, detectable = mcnemar_p_value(first, second), minimum_detectable_difference(n, n_differing / n)
    else:
        sums = np.asarray(np.bincount(positions, weights=differences, minlength=n_groups), dtype=np.float64)
        p_value = _sign_flip_p_value(sums, n_draws=n_bootstrap, seed=seed)
        detectable = min(1.0, (1.96 + 0.84) * (high - low) / (2 * 1.96))
        if _is_binary(first) and _is_binary(second):
            detectable = max(minimum_detectable_difference(n, 0.0), detectable)
    return PairedDifference(mean, low, high, p_value, n, n_differing, detectable)


def constant_interval(difference: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a difference of scores in [0, 1] that is the same on all of `n` rows or groups: they show no spread.

    As many of as many differ by that much: the others, of which Clopper and Pearson's bound says how many there may be,
    could differ by anything from -1 to 1. Of 1 or -1 it leaves out zero just where the exact McNemar test does.
    """
    _check_confidence(confidence)
    alike = float(((1 - confidence) / 2) ** (1 / n))
    return max(-1.0, difference * alike - (1 - alike)), min(1.0, difference * alike + (1 - alike))


def tango_interval(n_first: int, n_second: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a difference of two shares of the same n rows (Tango 1998, Statistics in Medicine 17).

    It holds each difference d that the score test keeps: |n_first - n_second - n d| <= z sqrt(n (2 q + d (1 - d))),
    with q the likeliest share of rows that only the second gets right, given d. Where no row differs it is Wilson's
    interval of a share of 0, to both sides.

    Args:
        n_first: Rows that only the first gets right.
        n_second: Rows that only the second gets right.
        n: All rows.
        confidence: Share of intervals that are to hold the true difference.

    Returns:
        Both ends, in [-1, 1].

    Raises:
        DataError: If n < 1, or the counts are not those of n rows.
    """
    if min(n_first, n_second) < 0:
        raise DataError(f"{n_first} and {n_second} rows that only one gets right: no count is below 0")
    _check_counts(n_first + n_second, n, confidence)
    from scipy import optimize, special

    z = float(special.ndtri(0.5 + confidence / 2))

    def low_end(more: int, fewer: int) -> float:
        if fewer == n:
            return -1.0

        def excess(d: float) -> float:
            b, c = (2 * n - more + fewer) * d - more - fewer, -fewer * d * (1 - d)
            root = float(np.sqrt(max(0.0, b * b - 8 * n * c)))
            q = -2 * c / (b + root) if b > 0 else (root - b) / (4 * n)
            return more - fewer - n * d - z * float(np.sqrt(max(0.0, n * (2 * q + d * (1 - d)))))

        return float(optimize.brentq(excess, -1.0, (more - fewer) / n - 1e-12, xtol=1e-12))

    return low_end(n_first, n_second), 0.0 - low_end(n_second, n_first)


def mcnemar_p_value(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided McNemar test of two 0/1 scores of the same rows (McNemar 1947); 1.0 when no row differs.

    Raises:
        DataError: If a score is neither 0 nor 1.
    """
    first, second = _as_pair(a, b)
    if not (_is_binary(first) and _is_binary(second)):
        raise DataError("mcnemar_p_value: the scores have to be 0 or 1; use paired_difference for graded scores")
    n_first, n_second = int((first > second).sum()), int((second > first).sum())
    if n_first + n_second == 0:
        return 1.0
    from scipy import stats

    return float(stats.binomtest(n_first, n_first + n_second, 0.5).pvalue)


def hierarchical_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    units: Groups | None = None,
    groups: Groups | None = None,
    n_bootstrap: int,
    seed: int,
    confidence: float = 0.95,
) -> PairedDifference:
    """Mean of a - b over seeds and rows, shapes (n_seeds, n_rows), seed i of a trained beside seed i of b.

    A draw resamples seeds, and then rows or groups (the same ones for all seeds), so the interval covers both another
    training and another test set. Where seeds come in units (splits), it resamples those first and the seeds inside of
    them then. NaN, in both, marks a row that a seed did not answer; a run's mean is over the rows that it has. With few
    seeds or units (under 5) the interval is too narrow in the direction of training noise. The p-value is
    2 min(share of draws <= 0, share >= 0), smoothed by 1 draw: it never is 0.
    """
    first, second = _as_matrix("a", a), _as_matrix("b", b)
    if first.shape != second.shape:
        raise DataError(f"hierarchical_difference: a has shape {first.shape}, b has {second.shape}")
    missing = np.isnan(first)
    if (missing != np.isnan(second)).any():
        raise DataError(
            "hierarchical_difference: NaN, for rows that a seed did not answer, must stand in a and b alike"
        )
    if missing.all(axis=1).any() or missing.all(axis=0).any():
        raise DataError("hierarchical_difference: a seed or a row has no score at all: leave it out")
    differences = first - second
    n_seeds, n_rows = differences.shape
    if not np.nan_to_num(differences).any():
        _group_positions(groups, n_rows)
        return PairedDifference(0.0, 0.0, 0.0, 1.0, n_rows, 0)
    by_seed = _bootstrap_means(differences, groups, n_bootstrap=n_bootstrap, seed=seed)
    draws = (by_seed * _resampled_runs(units, n_seeds, n_bootstrap, seed=seed)).mean(axis=1)
    low, high = _percentiles(draws, confidence)
    extreme = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p_value = min(1.0, 2 * (extreme + 1) / (n_bootstrap + 1))
    n_differing = int(np.nan_to_num(differences).any(axis=0).sum())
    return PairedDifference(float(np.nanmean(differences, axis=1).mean()), low, high, p_value, n_rows, n_differing)


def fisher_p_value(hits_a: int, n_a: int, hits_b: int, n_b: int) -> float:
    """Two-sided p-value of Fisher's exact test that two independent samples have the same share of hits."""
    from scipy import stats

    return float(stats.fisher_exact([[hits_a, n_a - hits_a], [hits_b, n_b - hits_b]]).pvalue)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's adjusted p-values (1979), in the order given; rejecting those <= alpha holds the familywise error."""
    p = _as_shares("p_values", p_values)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def minimum_detectable_difference(
    n: int, discordant_fraction: float, power: float = 0.8, confidence: float = 0.95
) -> float:
    """Smallest true paired difference in accuracy that n rows show with `power` (Connor 1987, McNemar's test).

    Solves sqrt(n) d = z_alpha sqrt(f) + z_power sqrt(f - d^2) for d, with f the share of rows on which the two models
    differ. A difference needs as many rows that differ: where d comes out above f, or f is 0, it is the d at which so
    many rows differ, all to one side, that the exact test finds them (six of them at 95%). At most 1, for too few rows.
    """
    if n < 1:
        raise DataError(f"minimum_detectable_difference: n is {n}; at least one row is needed")
    f = float(discordant_fraction)
    if not 0 <= f <= 1 or not 0 < power < 1:
        raise DataError(
            f"minimum_detectable_difference: discordant_fraction {f} and power {power} have to lie in (0, 1)"
        )
    from scipy import optimize, stats

    z_alpha, z_power = float(stats.norm.ppf(0.5 + confidence / 2)), float(stats.norm.ppf(power))
    # The square of the equation is a quadratic in d; the larger root is the solution.
    root = z_power * np.sqrt(max(0.0, f * (n + z_power**2 - z_alpha**2)))
    d = (z_alpha * np.sqrt(f * n) + root) / (n + z_power**2)
    n_needed = int(np.ceil(1 - np.log2(1 - confidence)))  # 2 * 0.5^m is at most 1 - confidence
    if n < n_needed:
        return 1.0
    least = optimize.brentq(lambda share: stats.binom.sf(n_needed - 1, n, share) - power, 0.0, 1.0)
    return float(least if d > f else max(least, d))


def macro_f1(targets: Sequence[str], answers: Sequence[str | None]) -> float:
    """Unweighted mean of the F1 of each class that occurs among the targets.

    A class that is only answered has no F1 of its own: it counts against the class that was right, as does None.
    """
    _check_lengths("macro_f1", len(targets), len(answers))
    n_both = Counter(t for t, x in zip(targets, answers, strict=True) if t == x)
    n_any = Counter(targets) + Counter(x for x in answers if x is not None)
    return float(np.mean([2 * n_both[name] / n_any[name] for name in sorted(set(targets))]))


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, n_bins: int = 15) -> float:
    """Mean |accuracy - confidence| over bins of equal mass (Naeini 2015; adaptive binning, Nixon arXiv:1904.01685).

    Rows are sorted by confidence and cut into min(n_bins, n) bins whose sizes differ by at most one. Rows of equal
    confidence share their mean accuracy, so that their order does not matter where a cut parts them. Biased upwards for
    few rows.
    """
    sure, right = _as_confidence(confidence, correct)
    if n_bins < 1:
        raise DataError(f"expected_calibration_error: n_bins is {n_bins}; at least 1 is needed")
    gaps = (share_ties(sure, right) - sure)[np.argsort(sure, kind="stable")]
    bins = np.array_split(gaps, min(n_bins, len(gaps)))
    return float(sum(abs(part.sum()) for part in bins) / len(gaps))


def brier_score(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean squared gap between confidence in the answer given and whether it was right (Brier 1950), in [0, 1]."""
    sure, right = _as_confidence(confidence, correct)
    return float(np.mean((sure - right) ** 2))


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    """Coverage k/n and risk (share wrong among the k surest rows), both of shape (n,), for k = 1..n.

    Confidence may be any number, larger is surer (a negative mean NLL too). Rows of equal confidence share their mean
    error, so that their order does not matter.
    """
    sure, right = _as_pair(confidence, correct, a_name="confidence", b_name="correct")
    _check_range("correct", right)
    errors = share_ties(sure, 1 - right)[np.argsort(-sure, kind="stable")]
    n_rows = np.arange(1, len(sure) + 1)
    return n_rows / len(sure), np.cumsum(errors) / n_rows


def share_ties(keys: ArrayLike, values: ArrayLike) -> Floats:
    """`values` (n,), each replaced by the mean over the rows that have the same key, in the order given."""
    of_row, numbers = _as_pair(keys, values, a_name="keys", b_name="values")
    _, place = np.unique(of_row, return_inverse=True)
    means: Floats = (np.bincount(place, weights=numbers) / np.bincount(place))[place]
    return means


def area_under_risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean of the risk over all coverages (AURC, Geifman arXiv:1805.08206); the error rate if uninformed."""
    return float(risk_coverage(confidence, correct)[1].mean())


def precision_by_coverage(
    confidence: ArrayLike, correct: ArrayLike, coverages: Sequence[float]
) -> list[tuple[float, float]]:
    """(coverage, precision) where the surest round(coverage * n) rows are kept, at least one; coverages in (0, 1]."""
    risk = risk_coverage(confidence, correct)[1]
    for coverage in coverages:
        if not 0 < coverage <= 1:
            raise DataError(f"precision_by_coverage: coverage {coverage} has to lie in (0, 1]")
    return [(float(c), float(1 - risk[max(1, round(c * len(risk))) - 1])) for c in coverages]


def histogram_counts(
    values: ArrayLike, n_bins: int = 20, value_range: tuple[float, float] | None = None
) -> tuple[NDArray[np.int64], Floats]:
    """Counts (n_bins,) and edges (n_bins + 1,) of equal-width bins; the last bin holds its right edge.

    Raises:
        DataError: If there are no values, or one lies outside `value_range`, which would drop out of the counts.
    """
    x = _as_vector("values", values)
    if n_bins < 1:
        raise DataError(f"histogram_counts: n_bins is {n_bins}; at least 1 is needed")
    if value_range is not None and (x.min() < value_range[0] or x.max() > value_range[1]):
        raise DataError(f"histogram_counts: values from {x.min():g} to {x.max():g} do not fit in {value_range}")
    counts, edges = np.histogram(x, bins=n_bins, range=value_range)
    return counts.astype(np.int64), edges.astype(np.float64)


def _bootstrap_means(rows: Floats, groups: Groups | None, *, n_bootstrap: int, seed: int) -> Floats:
    """Means of `rows` (m, n) over resampled units (rows, or groups with all their rows), shape (n_bootstrap, m).

    NaN marks what a line of `rows` does not have; a line none of whose rows is drawn gives its own mean.
    """
    if n_bootstrap < 1:
        raise DataError(f"n_bootstrap is {n_bootstrap}; at least 1 is needed")
    positions, n_units = _group_positions(groups, rows.shape[1])
    sums = np.stack([np.bincount(positions, weights=row, minlength=n_units) for row in np.nan_to_num(rows)])
    sizes = np.stack([np.bincount(positions, weights=row, minlength=n_units) for row in np.isfinite(rows)])
    own = sums.sum(axis=1) / sizes.sum(axis=1)
    generator = np.random.default_rng(seed)
    means = []
    for counts in _resampled_counts(generator, n_units, n_bootstrap):
        drawn = counts @ sizes.T
        means.append(np.where(drawn > 0, (counts @ sums.T) / np.maximum(drawn, 1), own))
    return np.concatenate(means)


def _resampled_runs(units: Groups | None, n_runs: int, n_draws: int, *, seed: int) -> Floats:
    """Weight of each run in each draw, shape (n_draws, n_runs), 1 on average in each line.

    Units are drawn first, then as many runs inside each as it has.
    """
    positions, n_units = _group_positions(units, n_runs)
    generator = np.random.default_rng((seed, 1))
    of_unit = generator.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_draws)
    weights = np.zeros((n_draws, n_runs))
    for unit in range(n_units):
        runs = np.flatnonzero(positions == unit)
        shares = np.full(len(runs), 1 / len(runs))
        weights[:, runs] = generator.multinomial(of_unit[:, unit] * len(runs), shares)
    scaled: Floats = weights * (n_runs / weights.sum(axis=1, keepdims=True))
    return scaled


def _resampled_counts(generator: np.random.Generator, n_units: int, n_draws: int) -> Iterator[Floats]:
    """How often each unit is drawn, blocks of shape (b, n_units); each row sums to n_units."""
    block = max(1, _BLOCK_CELLS // n_units)
    for start in range(0, n_draws, block):
        size = min(block, n_draws - start)
        picks = generator.integers(n_units, size=(size, n_units))
        picks += np.arange(size)[:, np.newaxis] * n_units
        yield np.bincount(picks.ravel(), minlength=size * n_units).reshape(size, n_units).astype(np.float64)


def _sign_flip_p_value(sums: Floats, *, n_draws: int, seed: int) -> float:
    """Two-sided sign-flip test of a zero sum over units; units of zero change nothing and are left out."""
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    # Rounding must not make an equally extreme sum look smaller.
    observed = abs(float(sums.sum())) * (1 - 1e-12) - 1e-15
    if len(sums) <= 12:
        bits = np.arange(2 ** len(sums))[:, np.newaxis] >> np.arange(len(sums)) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ sums) >= observed))
    generator = np.random.default_rng((seed, 2))
    block = max(1, _BLOCK_CELLS // len(sums))
    n_hits = 0
    for start in range(0, n_draws, block):
        signs = 1 - 2.0 * generator.integers(2, size=(min(block, n_draws - start), len(sums)), dtype=np.int8)
        n_hits += int((np.abs(signs @ sums) >= observed).sum())
    return (n_hits + 1) / (n_draws + 1)


def _percentiles(draws: Floats, confidence: float, *, n_units: float | None = None) -> tuple[float, float]:
    """Percentiles of the draws; of `n_units` units as far apart as gives `confidence` (Hesterberg 2015)."""
    _check_confidence(confidence)
    tail = (1 - confidence) / 2
    if n_units is not None:
        from scipy import special

        t = special.stdtrit(n_units - 1, 1 - tail)
        tail = float(special.ndtr(-t * np.sqrt(n_units / (n_units - 1))))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _count_equal_units(groups: Groups | None, n: int) -> float:
    """Kish's number of groups, of which as many of equal size would tell as much; of several, two at least."""
    positions, n_units = _group_positions(groups, n)
    sizes = np.bincount(positions, minlength=n_units)
    return min(float(n_units), max(2.0, n**2 / float((sizes**2).sum())))


def _group_positions(groups: Groups | None, n: int) -> tuple[NDArray[np.int64], int]:
    """Position of each row's unit, shape (n,), and the number of units."""
    if groups is None:
        return np.arange(n, dtype=np.int64), n
    if len(groups) != n:
        raise DataError(f"{len(groups)} groups for {n} rows: every row needs one")
    index: dict[Hashable, int] = {}
    positions = np.fromiter((index.setdefault(group, len(index)) for group in groups), dtype=np.int64, count=n)
    return positions, len(index)


def _check_counts(successes: int, n: int, confidence: float) -> None:
    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        raise DataError(f"{successes} successes of {n} at confidence {confidence}: no interval of a share is possible")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise DataError(f"confidence is {confidence}; it has to lie in (0, 1)")


def _check_lengths(name: str, n_first: int, n_second: int) -> None:
    if n_first != n_second:
        raise DataError(f"{name}: {n_first} and {n_second} values; they have to be of the same rows")
    if not n_first:
        raise DataError(f"{name}: there are no rows to measure")


def _check_range(name: str, values: Floats) -> None:
    if values.min() < 0 or values.max() > 1:
        raise DataError(f"{name}: values from {values.min():g} to {values.max():g}; they have to lie in [0, 1]")


def _is_binary(values: Floats) -> bool:
    return bool(np.all((values == 0) | (values == 1)))


def _as_array(name: str, values: Any, n_dimensions: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != n_dimensions:
        raise DataError(f"{name}: expected {n_dimensions} dimension(s), got shape {array.shape}")
    if not array.size:
        raise DataError(f"{name}: there are no rows to measure")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: {int((~np.isfinite(array)).sum())} values are NaN or infinite: leave those rows out")
    return array


def _as_vector(name: str, values: Any) -> Floats:
    return _as_array(name, values, 1)


def _as_matrix(name: str, values: Any) -> Floats:
    """Two dimensions; NaN may stand for what is not there."""
    matrix = np.asarray(values, dtype=np.float64)
    _as_array(name, np.where(np.isnan(matrix), 0.0, matrix), 2)
    return matrix


def _as_shares(name: str, values: Any) -> Floats:
    shares = _as_vector(name, values)
    _check_range(name, shares)
    return shares


def _as_pair(a: Any, b: Any, *, a_name: str = "a", b_name: str = "b") -> tuple[Floats, Floats]:
    first, second = _as_vector(a_name, a), _as_vector(b_name, b)
    _check_lengths(f"{a_name} and {b_name}", len(first), len(second))
    return first, second


def _as_confidence(confidence: Any, correct: Any) -> tuple[Floats, Floats]:
    sure, right = _as_pair(confidence, correct, a_name="confidence", b_name="correct")
    _check_range("confidence", sure)
    _check_range("correct", right)
    return sure, right
