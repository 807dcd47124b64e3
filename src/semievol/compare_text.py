"""The sentences of a comparison: does it pay, how sure is that, what does it cost, which part matters.

Read off the content of results.json. A difference is called one only where its interval leaves out zero and its test
agrees (of a single run they can differ at the edge).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from semievol.arms import CONTROL_OF
from semievol.compare_load import setting_text
from semievol.report_text import LEVEL, METRIC_NAMES, MINUS, interval, p_value, percent, plural, signed

ARM_LABELS = {
    "zero_shot": "Zero-shot",
    "self_consistency": "Self-consistency",
    "few_shot_bm25": "Few-shot, BM25",
    "few_shot_dense": "Few-shot, dense",
    "sft": "SFT",
    "sft_matched": "SFT, matched steps",
    "tapt_sft": "TAPT, then SFT",
    "icl_distill": "In-context distillation",
    "oracle_select": "Oracle selection",
    "pseudo_all": "All pseudo-labels",
    "pseudo_confident": "Confident pseudo-labels",
    "semievol": "SemiEvol",
    "semievol_released": "SemiEvol, released code",
    "oracle_full": "SFT on all gold",
}
"""Names of arms in tables where the config's name does not read well."""
PARTS = {
    "iwp": "in-weight propagation",
    "icp": "in-context propagation",
    "cl": "collaborative learning",
    "as": "adaptive selection",
}
"""What an arm `semievol-<part>` leaves out."""
GOLD_MARK = "uses gold"
STEPS_ALIKE = 0.05
"""Trainings whose numbers of steps differ by less, as a share, count as equally long."""
ONE_RUN_TESTS = ("mcnemar", "sign_flip")
"""Methods that take the difference for that of one run."""
KEY_TITLES = {
    "n": "number of configurations n",
    "theta": "share of pseudo-labels kept \N{GREEK SMALL LETTER THETA}",
    "select.keep_fraction": "share of pseudo-labels kept",
    "k": "demonstrations k",
    "unlabeled_ratio": "|U| / |L|",
    "data.max_labeled": "labelled rows |L|",
    "rounds": "rounds",
    "rewording": "wording of the instruction",
}
"""Swept keys as axes name them."""
NOMINAL_KEYS = ("rewording", "seed")
"""Swept keys whose numbers are names."""


class Verdict(NamedTuple):
    """The answer at a glance."""

    sentence: str
    points: tuple[tuple[str, str], ...]
    """Questions and their answers."""
    remarks: tuple[str, ...]


def arm_label(name: str, *, uses_gold: bool = False) -> str:
    """Name of an arm for people; one that reads sealed targets always says so."""
    matched, of, controlled = name.partition(CONTROL_OF)
    whole, minus, part = name.partition("-")
    if of:
        label = f"{arm_label(matched).partition(',')[0]}, as long as {arm_label(controlled)}"
    elif minus:
        label = f"{arm_label(whole)} {MINUS} {part.upper() if part in PARTS else part.replace('_', ' ')}"
    else:
        label = ARM_LABELS.get(name) or name.replace("_", " ").capitalize()
    return f"{label} ({GOLD_MARK})" if uses_gold else label


def cell_label(arm: str, setting: Mapping[str, Any], *, uses_gold: bool = False) -> str:
    """Arm with its setting in a sweep."""
    label = arm_label(arm, uses_gold=uses_gold)
    return f"{label}, {setting_text(setting)}" if setting else label


def own_controls(results: Mapping[str, Any]) -> set[str]:
    """Arms whose difference is from a control of their own."""
    return {d["arm"] for d in results["differences"] if CONTROL_OF in d["reference"]}


def against(results: Mapping[str, Any]) -> str:
    """What the differences are from, for a title: the reference, or where all are from one control that one."""
    own = own_controls(results)
    if not own:
        return str(results["reference_label"])
    references = {d["reference"] for d in results["differences"]}
    return (
        arm_label(references.pop())
        if len(references) == 1
        else f"{results['reference_label']}, or the arm's own control"
    )


def duration(seconds: float | None) -> str:
    """`45 s`, `12.5 min`, `3.2 h`; a dash for none."""
    if seconds is None:
        return "\N{EN DASH}"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def large(number: float | None) -> str:
    """`950`, `12.3 k`, `4.5 M`; a dash for none."""
    if number is None:
        return "\N{EN DASH}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.1f} {unit}"
    return f"{number:,.0f}"


def write_verdict(results: Mapping[str, Any]) -> Verdict:
    """Read the outcome off the numbers."""
    headline = results["headline"]
    remarks = _remarks(results)
    if results["sweep"]:
        return Verdict(_sweep_sentence(results), _sweep_points(results), remarks)
    if headline is None:
        return Verdict(_unmeasured_sentence(results), (), remarks)
    found = [
        ("How sure are we?", _certainty(headline, results)),
        ("What does it cost?", _cost(headline, results)),
        ("Which part matters?", _parts(results)),
        ("How much of the gap is closed?", _gap(headline["arm"], results)),
    ]
    return Verdict(_pay_sentence(headline, results), tuple((q, a) for q, a in found if a), remarks)


def _pay_sentence(headline: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    ours, theirs = _entry(results, headline["arm"]), _entry(results, headline["reference"])
    a, b = ours["label"], theirs["label"]
    metric = METRIC_NAMES[results["metric"]]
    size = f"{abs(100 * headline['difference']):.1f} points"
    low, high = headline["ci_low"], headline["ci_high"]
    where = " in the runs that both have" if headline["unpaired"] else ""
    reached = f"{percent(headline['value'])}% against {percent(headline['reference_value'])}% {metric}{where}"
    if headline["method"] == "no_difference":
        return f"{a} and {b} have the same score on every test row{where}: {percent(headline['value'])}% {metric}."
    if low > 0 and headline["p_value"] <= LEVEL and results["headline_other"] is not None:
        return f"{a} beats {b} by {size} {interval(low, high)}, {reached}, but {_other_sentence(results)}"
    if low > 0 and headline["p_value"] <= LEVEL and theirs["at_chance"]:
        return f"{a} beats {b} by {size} {interval(low, high)}, {reached}, but {_chance_clause(theirs)}."
    if low > 0 and headline["p_value"] <= LEVEL:
        return f"{a} pays: {size} {interval(low, high)} more than {b}, {reached}."
    if high < 0 and headline["p_value"] <= LEVEL:
        return f"{a} does not pay: {size} {interval(-high, -low)} less than {b}, {reached}."
    bounds = f"{signed(headline['difference'])} points {interval(low, high)}"
    return f"Whether {a} pays cannot be told: {bounds} against {b}, {reached}."


def _chance_clause(entry: Mapping[str, Any]) -> str:
    """What it says of an arm that it counts as at chance: that is no proof that it knows nothing."""
    return (
        f"{entry['label']} is not seen to be better than always giving the most frequent answer "
        f"({percent(entry['majority'])}%)"
    )


def _other_sentence(results: Mapping[str, Any]) -> str:
    """What a reference that learned less than another arm leaves of the outcome."""
    found, reference = results["headline_other"], _entry(results, results["headline"]["reference"])
    weak = _chance_clause(reference)
    if not reference["at_chance"]:
        weak = "another arm without unlabelled rows does better"
    bounds = f"{signed(found['difference'])} points {interval(found['ci_low'], found['ci_high'])}"
    return f"{weak}: against {arm_label(found['reference'])} {bounds}, {p_value(found['p_value'])}."


def _certainty(headline: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    runs = plural(headline["n_runs"], "paired run")
    text = f"{p_value(headline['p_value'])} over {runs} and {plural(headline['n_rows'], 'test row')}"
    family = next(
        (
            d
            for d in results["differences"]
            if (d["arm"], d["reference"]) == (headline["arm"], headline["reference"]) and d["p_holm"] is not None
        ),
        None,
    )
    if family is not None and len(results["differences"]) > 1:
        text += f" ({p_value(family['p_holm'])} after Holm over {len(results['differences'])} comparisons)"
    if headline["detectable"] is not None:
        text += f". {_detectable_clause(headline)}"
    if headline["n_runs"] == 1:
        text += ". One run each: nothing is known about the chance in training"
    elif headline["method"] in ONE_RUN_TESTS:
        text += ". All runs differ on the same rows, so they count as one"
    return f"{text}."


def _detectable_clause(headline: Mapping[str, Any]) -> str:
    """What true difference would be found, which may be none."""
    if headline["detectable"] < 1:
        return f"A true difference of {percent(headline['detectable'])} points would be found four times in five"
    return f"With so few {'runs' if headline['method'] == 'crossed_t' else 'rows'} no difference could be told"


def _cost(headline: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    ours, theirs = _entry(results, headline["arm"])["cost"], _entry(results, headline["reference"])["cost"]
    if ours is None or theirs is None:
        return ""
    text, other = f"{duration(ours['seconds'])} a run", arm_label(headline["reference"])
    if theirs["seconds"] > 0 and ours["seconds"] > 0:
        text += f", {ours['seconds'] / theirs['seconds']:.1f} times the {duration(theirs['seconds'])} of {other}"
    return (
        f"{text}; {large(ours['prompt_tokens'])} tokens read, {large(ours['completion_tokens'])} generated, "
        f"{large(ours['train_tokens'])} trained in {large(ours['optimizer_steps'])} optimiser steps."
        f"{_answer_cost(ours, theirs, other)}"
    )


def _answer_cost(ours: Mapping[str, float], theirs: Mapping[str, float], other: str) -> str:
    """What an answer takes, where it takes other tokens than one of what it is compared with."""
    tokens = [cost["answer_prompt_tokens"] + cost["answer_completion_tokens"] for cost in (ours, theirs)]
    if not tokens[1] or 0.95 <= tokens[0] / tokens[1] <= 1.05:
        return ""
    return f" An answer takes {tokens[0] / tokens[1]:.1f} times the tokens of one of {other}."


def _parts(results: Mapping[str, Any]) -> str:
    parts = results["parts"]
    if not parts:
        return ""
    sure = sorted((p for p in parts if p["p_holm"] <= LEVEL), key=lambda p: -abs(p["difference"]))
    listed = "; ".join(
        f"{_part_name(p['reference'])} {signed(p['difference'])} {interval(p['ci_low'], p['ci_high'])}" for p in sure
    )
    rest = [_part_name(p["reference"]) for p in parts if p not in sure]
    text = f"Worth in points, with 95% intervals: {listed}. " if sure else ""
    if rest:
        widest = max((p["detectable"] or 0.0 for p in parts if p not in sure), default=0.0)
        others = "the others" if sure else "the parts"
        if all(p["method"] == "no_difference" for p in parts if p not in sure):
            return f"{text}Leaving {', '.join(rest)} out changes the score of no test row."
        missed = f"differences below about {percent(widest)} points would be missed"
        if widest >= 1:
            missed = "some have so few runs or rows that no difference could be told"
        text += f"Whether {others} ({', '.join(rest)}) matter cannot be told: {missed}."
    return text.strip()


def _part_name(arm: str) -> str:
    part = arm.partition("-")[2]
    return PARTS.get(part, part)


def _gap(arm: str, results: Mapping[str, Any]) -> str:
    gap = next((g for g in results["gap_closed"] if g["arm"] == arm and not g["setting"]), None)
    if gap is None:
        return ""
    if gap["value"] is None:
        return f"Not defined: {gap['reason']}."
    return (
        f"{percent(gap['value'])}% {interval(gap['ci_low'], gap['ci_high'])} of the way from SFT to training on all "
        "gold targets."
    )


def _sweep_sentence(results: Mapping[str, Any]) -> str:
    entries = [e for e in results["arms"] if e["arm"] == results["main"] and e["value"] is not None]
    keys = " and ".join(KEY_TITLES.get(key, key) for key in results["sweep"])
    if not entries:
        return f"Nothing is measured yet over {keys}."
    values = [e["value"] for e in entries]
    return (
        f"{arm_label(results['main'])} reaches {percent(min(values))}% to {percent(max(values))}% "
        f"{METRIC_NAMES[results['metric']]} over {plural(len(entries), 'setting')} of {keys}."
    )


def _sweep_points(results: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    tested = [d for d in results["differences"] if d["same_as"] is None]
    ours = [d for d in tested if d["arm"] == results["main"]]
    points = []
    paired = [d["setting"] for d in results["differences"] if d["arm"] == results["main"]]
    measured = [e for e in results["arms"] if e["arm"] == results["main"] and e["value"] is not None]
    n_lone = sum(e["setting"] not in paired for e in measured) if results["main"] != results["reference"] else 0
    clauses = []
    if ours:
        references = {d["reference"] for d in ours}
        name = arm_label(references.pop()) if len(references) == 1 else against(results)
        above = sum(d["p_holm"] <= LEVEL and d["difference"] > 0 for d in ours)
        below = sum(d["p_holm"] <= LEVEL and d["difference"] < 0 for d in ours)
        clauses.append(
            f"Above {name} in {above} and below it in {below} of "
            f"{plural(len(ours), 'setting')} (Holm over {len(tested)})"
        )
        if above + below < len(ours):
            clauses.append("the others cannot be told")
    if n_lone:
        clauses.append(f"{plural(n_lone, 'setting')} lack{'s' if n_lone == 1 else ''} a run of the reference")
    if clauses:
        points.append(("Does it pay?", f"{'; '.join(clauses)}."))
    spreads = [line for line in results["sweep_spread"] if line["arm"] == results["main"]]
    n_tests = sum(line["p_value"] is not None for line in spreads)
    for line in spreads:
        asked = f"Does {KEY_TITLES.get(line['key'], line['key'])} matter?"
        points.append((asked, _spread_sentence(line, n_tests=n_tests)))
    return tuple(points)


def _spread_sentence(line: Mapping[str, Any], *, n_tests: int) -> str:
    seen = (
        f"ver its {line['n_values']} values the mean moves between {percent(line['least'])}% and "
        f"{percent(line['most'])}%, standard deviation {percent(line['sd'])} points"
    )
    if line["p_value"] is None:
        return f"O{seen}."
    told = "Yes" if line["p_value"] <= LEVEL else "Not beyond chance"
    among = f", one of {n_tests} tests, not adjusted" if n_tests > 1 else ""
    return (
        f"{told}: o{seen}, where chance alone gives {percent(line['chance_sd'])} ({p_value(line['p_value'])}{among})."
    )


def _unmeasured_sentence(results: Mapping[str, Any]) -> str:
    runs = results["n_runs"]
    if not runs["done"]:
        return f"Nothing is measured yet: {runs['pending']} runs are to come and {runs['failed']} failed."
    arms = {entry["arm"]: entry for entry in results["arms"] if entry["value"] is not None}
    if len(arms) == 1:
        (only,) = arms.values()
        reached = f"{percent(only['value'])}% {METRIC_NAMES[results['metric']]}"
        return f"Nothing can be compared yet: {only['label']} reaches {reached}, and no other arm is done."
    method = next((e for e in results["arms"] if e["arm"] == results["main"]), None)
    if method is not None and method["status"] == "failed":
        n_failed, n = sum(run["status"] == "failed" for run in method["unfinished"]), len(method["unfinished"])
        which = (
            "all of its runs failed" if n_failed == n else f"{n_failed} of its {n} runs failed, the others are to come"
        )
        return f"Nothing can be said of {method['label']}: {which}."
    return "Nothing can be compared yet: no split and seed is done in both the method and its reference."


def _remarks(results: Mapping[str, Any]) -> tuple[str, ...]:
    runs = results["n_runs"]
    remarks = []
    if runs["failed"] or runs["pending"]:
        remarks.append(
            f"{runs['done']} of {sum(runs.values())} runs are done, {runs['failed']} failed, {runs['pending']} are to "
            "come; differences use the splits and seeds that both arms have."
        )
    if any(e["uses_gold"] for e in results["arms"]):
        remarks.append(
            f"Arms marked \N{LEFT DOUBLE QUOTATION MARK}{GOLD_MARK}\N{RIGHT DOUBLE QUOTATION MARK} read targets that "
            "were sealed for all others: bounds, not methods."
        )
    if results["reference_asked"] != results["reference"]:
        remarks.append(
            f"{arm_label(results['reference_asked'])} was to be the reference, but no run of it is done: differences "
            f"are from {results['reference_label']}."
        )
    done = [e for e in results["arms"] if e["value"] is not None]
    if done:
        remarks += [
            _draws_remark(results, done),
            _groups_remark(done),
            _chance_remark(results, done),
            _runs_remark(done),
            _steps_remark(results, done),
            _parts_remark(results),
            _oracle_remark(done),
            _precision_remark(done),
            _versions_remark(done),
        ]
    return tuple(remark for remark in remarks if remark)


def _draws_remark(results: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> str:
    """What the number of splits and seeds leaves open: of splits those that all arms are done in."""
    n_splits = len(set.intersection(*({run["split"] for run in e["by_run"]} for e in done)))
    planned = len(results["splits"])
    if planned == 1 or results["same_labels"]:
        few = "; with two seeds they are very wide, too" if max(len(e["by_run"]) for e in done) == 2 else ""
        whole = "All splits" if results["same_labels"] else "All runs of a setting" if results["sweep"] else "All runs"
        return f"{whole} have the same labelled rows: no interval covers the chance in drawing those{few}."
    if n_splits < 2:
        return (
            f"{'No split is' if n_splits == 0 else 'Only one split is'} done in all arms, of {planned}: an interval of "
            "runs from one split does not cover the chance in drawing its labelled rows."
        )
    if n_splits == 2:
        whole = "Two splits" if planned == 2 else f"Two of {planned} splits are done in all arms, which"
        return f"{whole} leave the intervals very wide; from three on they are of use."
    return ""


def _groups_remark(done: Sequence[Mapping[str, Any]]) -> str:
    """Whether groups are the units of the intervals."""
    entry = max(done, key=lambda e: e["n_groups"] or 0)
    n_groups = entry["n_groups"]
    if n_groups is None or n_groups == entry["n_rows"]:
        return ""
    if entry["by_group"]:
        return f"The test rows come in {n_groups} groups, which are the units of the intervals."
    return (
        f"The test rows come in {n_groups} groups, too few to be the units of the intervals: rows are, which is right "
        "for categories; if the groups are documents, the intervals are too narrow."
    )


def _chance_remark(results: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> str:
    """Arms that show nothing learned."""
    low = [e["label"] for e in done if e["at_chance"]]
    if not low:
        return ""
    one, many = ("setting of an arm", "settings of arms") if results["sweep"] else ("arm", "arms")
    some = f"{len(low)} of {len(done)} {many} {'is' if len(low) == 1 else 'are'}"
    which = f"Every {one} is" if len(low) == len(done) else some
    named = "" if len(low) == len(done) else f": {', '.join(low)}"
    return (
        f"{which} at chance in {METRIC_NAMES[results['metric']]}: not seen on these test rows to be better than always "
        "giving the most frequent right answer "
        f"({percent(max(e['majority'] for e in done if e['at_chance']))}%){named}."
    )


def _runs_remark(done: Sequence[Mapping[str, Any]]) -> str:
    """Arms of which fewer runs are done than of others."""
    counts = {e["label"]: len(e["by_run"]) for e in done}
    most = max(counts.values())
    fewer = [f"{label} {n}" for label, n in counts.items() if n < most]
    if not fewer:
        return ""
    return (
        f"Values are over {most} runs, but fewer of: {', '.join(fewer)}. Differences use the runs that both arms have."
    )


def _steps_remark(results: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> str:
    """Arms whose model is further from the base, or nearer to it, than what it is compared with."""
    if results["sweep"]:
        return ""
    references = {d["arm"]: _entry(results, d["reference"])["steps_from_base"] for d in results["differences"]}
    listed = [
        f"{e['label']} {n:.0f}"
        for e in done
        if (n := e["steps_from_base"]) is not None and (own := references.get(e["arm"]))
        if abs(n - own) > STEPS_ALIKE * own
    ]
    reference = next((e["steps_from_base"] for e in done if e["arm"] == results["reference"]), None)
    if not listed or not reference:
        return ""
    return (
        f"Models differ in optimiser steps from the base: {results['reference_label']} {reference:.0f}, but "
        f"{', '.join(listed)}. A part of these differences may be training time."
    )


def _parts_remark(results: Mapping[str, Any]) -> str:
    """Ablations whose last training is not as long as that of the whole method."""
    main = _entry(results, results["main"])["steps_from_base"]
    parts = [_entry(results, found["reference"]) for found in results["parts"]]
    listed = [
        f"{e['label']} {n:.0f}"
        for e in parts
        if main and (n := e["steps_from_base"]) is not None and abs(n - main) > STEPS_ALIKE * main
    ]
    if not listed:
        return ""
    return (
        f"{results['main_label']} takes {main:.0f} optimiser steps from the base, but {', '.join(listed)}: a part of "
        "what these parts are worth may be training time."
    )


def _oracle_remark(done: Sequence[Mapping[str, Any]]) -> str:
    """The oracle that keeps right labels, where there are fewer of them than the method keeps."""
    short = [e for e in done if (n := e["oracle_labels"]) and n["kept"] < n["wanted"]]
    return " ".join(
        f"{e['label']} keeps {e['oracle_labels']['kept']:.0f} labels, where selection keeps "
        f"{e['oracle_labels']['wanted']:.0f}: no more are right (means over the runs)."
        for e in short
    )


def _precision_remark(done: Sequence[Mapping[str, Any]]) -> str:
    """Trainings of machines that took another precision."""
    arms = {p: [e["label"] for e in done if p in e["precisions"]] for p in ("bf16", "fp32")}
    if not all(arms.values()):
        return ""
    rarer = min(arms, key=lambda p: len(arms[p]))
    named = "" if len(arms[rarer]) == len(done) else f" ({', '.join(arms[rarer])})"
    return (
        f"Not all trainings ran in one precision: some in {rarer}{named}. A part of the differences may be rounding; "
        "trainer.precision sets one for all machines."
    )


def _versions_remark(done: Sequence[Mapping[str, Any]]) -> str:
    """Packages of which some steps ran with one version and some with another, and devices that differ."""
    found: dict[str, set[str]] = {}
    for name, _, version in (text.partition(" ") for entry in done for text in entry["versions"]):
        found.setdefault(name, set()).add(version)
    mixed = [
        f"{name} {' and '.join(sorted(versions))}" for name, versions in sorted(found.items()) if len(versions) > 1
    ]
    if not mixed:
        return ""
    return (
        f"Not all steps ran in one environment: {'; '.join(mixed)}. A part of the differences may come from that; "
        "another --output-dir runs all of them in one."
    )


def _entry(results: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
    entries: Sequence[Mapping[str, Any]] = (*results["arms"], *results["controls"])
    return next(e for e in entries if e["arm"] == arm)
