"""The tables of a comparison, from the content of its results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from semievol.compare_format import SIGNAL_TITLES, Column, Table
from semievol.compare_load import setting_text, value_text
from semievol.compare_results import GAP_FROM, GAP_TO
from semievol.compare_text import GOLD_MARK, against, arm_label, cell_label, own_controls
from semievol.report_text import GRADED_METRICS, METRIC_NAMES, plural

METHOD_TITLES = {
    "crossed_t": "crossed components, t",
    "mcnemar": "exact McNemar",
    "no_difference": "no row differs",
    "sign_flip": "sign flips",
    "korn_graubard": "Korn-Graubard",
    "clopper_pearson": "Clopper-Pearson",
    "wilson": "Wilson",
    "bootstrap": "bootstrap",
}


def build_tables(results: Mapping[str, Any]) -> dict[str, Table]:
    """All tables that have rows, by name, from the content of results.json."""
    tables = (
        _main_table(results),
        _difference_table(results),
        _part_table(results),
        _gap_table(results),
        _spread_table(results),
        _cost_table(results),
        _calibration_table(results),
        _signal_table(results),
        _group_table(results),
        _sweep_table(results),
        _row_table(results),
        _run_table(results),
    )
    return {table.name: _fill(table) for table in tables if table.rows}


def _fill(table: Table) -> Table:
    """None for what a row lacks: the keys that a point of a sweep leaves as they are."""
    empty = {column.key: None for column in table.columns}
    return table._replace(rows=tuple({**empty, **row} for row in table.rows))


def _main_table(results: Mapping[str, Any]) -> Table:
    differences = {_key(d): d for d in results["differences"]}
    metric = METRIC_NAMES[results["metric"]]
    columns = [
        *_arm_columns(results),
        Column("value", f"{metric} (%)", "percent"),
        Column("interval", "95% interval", "interval"),
        Column("difference", "difference", "points"),
        Column("difference_interval", "95% interval", "interval"),
        Column("p_holm", "p (Holm)", "p"),
        Column("seconds", "time a run", "duration"),
        Column("tokens", "tokens", "large"),
    ]
    rows = []
    for e in results["arms"]:
        d = differences.get(_key(e))
        rows.append(
            {
                **_names(e),
                "value": e["value"],
                "interval": _ends(e),
                "difference": d and d["difference"],
                "difference_interval": _ends(d),
                "p_holm": d and d["p_holm"],
                "seconds": e["cost"] and e["cost"]["seconds"],
                "tokens": e["cost"] and sum(e["cost"][k] for k in _TOKENS),
                "state": _state(e),
            }
        )
    if any(row["state"] != "done" for row in rows):
        columns.insert(len(_arm_columns(results)), Column("state", "state"))
    reference = cell_label(results["reference"], {})
    n_own = len(own_controls(results))
    own = f" (of {plural(n_own, 'arm')}: against SFT for as many steps, a control of its own)" if n_own else ""
    note = (
        f"Difference: points against {reference}{own}, paired by run and row, with {_interval_names(results)}; p "
        "adjusted by Holm over all arms. Time and tokens (read, generated and trained on) are those of making the "
        "model; the table of costs has those of an answer."
    )
    return Table("main", "Arms", tuple(columns), tuple(rows), ("value", "interval", False), note)


def _interval_names(results: Mapping[str, Any]) -> str:
    """How the intervals of the differences were made, as far as rows differ."""
    kinds = {_INTERVALS[d["method"]] for d in results["differences"] if d["method"] in _INTERVALS}
    return f"{' or '.join(sorted(kinds, reverse=True))} 95% intervals" if kinds else "95% intervals"


_INTERVALS = {"crossed_t": "crossed", "mcnemar": "Tango's", "sign_flip": "bootstrap"}
"""By the method of a `PairedResult`."""
_TOKENS = ("prompt_tokens", "completion_tokens", "train_tokens")


def _difference_table(results: Mapping[str, Any]) -> Table:
    title = f"Differences from {against(results)}"
    table = _paired_table("differences", title, results, results["differences"], arm="arm")
    if not own_controls(results):
        return table
    steps = {_key(e): e["steps_from_base"] for e in (*results["arms"], *results["controls"])}
    rows = []
    for row, d in zip(table.rows, results["differences"], strict=True):
        alone = (d["reference"], str({}))  # a reference that ran without a setting serves all
        own = steps.get((d["reference"], str(d["setting"])), steps.get(alone))
        rows.append({**row, "against": arm_label(d["reference"]), "reference_steps": own})
    n = len(_arm_columns(results))
    columns = (
        *table.columns[:n],
        Column("against", "against"),
        Column("reference_value", "its score (%)", "percent"),
        Column("reference_steps", "its steps", "count"),
        *table.columns[n:],
    )
    return table._replace(columns=columns, rows=tuple(rows))


def _part_table(results: Mapping[str, Any]) -> Table:
    title = f"{results['main_label']} minus the arm that lacks a part"
    return _paired_table("parts", title, results, results["parts"], arm="reference")


def _paired_table(
    name: str, title: str, results: Mapping[str, Any], found: Sequence[Mapping[str, Any]], *, arm: str
) -> Table:
    """A line for each difference, under the name of that side which changes (`arm`)."""
    gold = {e["arm"]: e["uses_gold"] for e in results["arms"]}
    columns = (
        *_arm_columns(results),
        Column("difference", "points", "points"),
        Column("interval", "95% interval", "interval"),
        Column("p_value", "p", "p"),
        Column("p_holm", "p (Holm)", "p"),
        Column("detectable", "detectable (points)", "percent"),
        Column("n_runs", "runs", "count"),
        Column("n_rows", "rows", "count"),
        Column("bootstrap", "seed-row bootstrap", "interval"),
        Column("method", "test"),
        Column("unpaired", "left out"),
    )
    rows = [
        {
            **d,
            **_names({**d, "arm": d[arm], "uses_gold": gold[d[arm]]}),
            "interval": _ends(d),
            "detectable": None if d["detectable"] == 1 else d["detectable"],
            "bootstrap": None if d["bootstrap_low"] is None else (d["bootstrap_low"], d["bootstrap_high"]),
            "method": METHOD_TITLES[d["method"]],
            "unpaired": "; ".join(run if len(results["splits"]) > 1 else run.split(", ")[-1] for run in d["unpaired"]),
        }
        for d in found
    ]
    drop = {key for key in ("unpaired", "bootstrap") if not any(row[key] for row in rows)}
    methods = list(dict.fromkeys(d["method"] for d in found if d["method"] != "no_difference"))
    note = "Detectable: the true difference that would be found four times in five with these runs and rows."
    if any(d["detectable"] == 1 for d in found):
        note += " A dash: none would be, they are too few."
    if len(methods) < 2:
        drop.add("method")
        note += "".join(f" Test: {METHOD_TITLES[method]}." for method in methods)
    sizes = {row["n_rows"] for row in rows}
    if len(sizes) == 1:
        drop.add("n_rows")
        note += f" Test rows: {sizes.pop():,}."
    return Table(name, title, tuple(c for c in columns if c.key not in drop), tuple(rows), None, note)


def _gap_table(results: Mapping[str, Any]) -> Table:
    gold = {e["arm"]: e["uses_gold"] for e in results["arms"]}
    columns = (
        *_arm_columns(results),
        Column("value", "gap closed (%)", "percent"),
        Column("interval", "95% interval", "interval"),
        Column("reason", "why not"),
    )
    rows = [{**g, **_names(g | {"uses_gold": gold[g["arm"]]}), "interval": _ends(g)} for g in results["gap_closed"]]
    if not any(row["reason"] for row in rows):
        columns = tuple(c for c in columns if c.key != "reason")
    top = arm_label(GAP_TO, uses_gold=True)
    note = f"Share of the way from {arm_label(GAP_FROM)}, which is 0, to {top}, which is 100; Fieller's interval."
    return Table("gap", "Gap closed", columns, tuple(rows), ("value", "interval", True), note)


def _spread_table(results: Mapping[str, Any]) -> Table:
    columns = [
        *_arm_columns(results),
        Column("value", f"{METRIC_NAMES[results['metric']]} (%)", "percent"),
        Column("seed_sd", "sd over seeds", "percent"),
        Column("split_sd", "sd over splits", "percent"),
        Column("sampling_se", "se of the test set", "percent"),
        Column("macro_f1", "macro-F1 (%)", "percent"),
        Column("n_runs", "runs", "count"),
        Column("n_rows", "rows", "count"),
        Column("n_unparsed", "unparsed", "count"),
        Column("method", "interval"),
    ]
    rows = [
        {**e, **_names(e), "n_runs": len(e["by_run"]), "method": METHOD_TITLES[e["method"]]}
        for e in results["arms"]
        if e["value"] is not None
    ]
    drop = {key for key in ("seed_sd", "split_sd", "macro_f1") if all(row[key] is None for row in rows)}
    note = (
        "Points. The two kinds of chance apart: another training (sd over seeds, of one run) and other test rows "
        "(standard error). Unparsed answers of all runs count as wrong."
    )
    if "macro_f1" not in drop:
        note += " Macro-F1: over the answers that are right for some test row."
    columns = [c for c in columns if c.key not in drop]
    return Table("spread", "Spread over trainings and error of the test set", tuple(columns), tuple(rows), None, note)


def _cost_table(results: Mapping[str, Any]) -> Table:
    columns = (
        *_arm_columns(results),
        Column("value", f"{METRIC_NAMES[results['metric']]} (%)", "percent"),
        Column("seconds", "time", "duration"),
        Column("shared_seconds", "of it shared", "duration"),
        Column("prompt_tokens", "tokens read", "large"),
        Column("completion_tokens", "generated", "large"),
        Column("optimizer_steps", "optimiser steps", "count"),
        Column("train_tokens", "tokens trained", "large"),
        Column("peak_memory_bytes", "peak memory", "bytes"),
        Column("answer_seconds", "time an answer (ms)", "count"),
        Column("answer_tokens", "tokens an answer", "count"),
    )
    rows = [{**e["cost"], **_names(e), "value": e["value"]} for e in results["arms"] if e["cost"] is not None]
    for row in rows:
        row["answer_seconds"] *= 1000
        row["answer_tokens"] = row["answer_prompt_tokens"] + row["answer_completion_tokens"]
    note = (
        "Mean of one run, steps that arms share counted in full for each. Answers that were stored for another arm "
        "count as if asked for: their tokens, and as their time that of as many tokens of the same step. Peak memory "
        "is the most that one step took. Measuring on the test rows stands apart, as time and tokens an answer."
    )
    return Table("cost", "What a run costs", columns, tuple(rows), None, note)


def _calibration_table(results: Mapping[str, Any]) -> Table:
    rows = [{**e["calibration"], **_names(e)} for e in results["arms"] if e["calibration"] is not None]
    columns = (
        *_arm_columns(results),
        Column("ece", "ECE (%)", "percent"),
        Column("brier", "Brier score", "decimal"),
        Column("mean_entropy", "mean entropy (nats)", "decimal"),
        Column("mean_nll", "mean NLL (nats)", "decimal"),
        Column("n", "answers", "count"),
    )
    note = (
        "ECE: expected calibration error over 15 bins of equal mass, mean over the runs; 0 is best. Answers that could "
        "not be read are left out."
    )
    return Table("calibration", "Calibration", columns, tuple(rows), None, note)


def _signal_table(results: Mapping[str, Any]) -> Table:
    """An arm a line, the area of each signal across."""
    rated = [e for e in results["arms"] if e["signals"]]
    rows = [
        {
            **_names(e),
            "n": e["signals"][0]["n"],
            "n_left_out": e["signals"][0]["n_left_out"],
            "error": e["signals"][0]["error"],
            **{s["signal"]: s["aurc"] for s in e["signals"]},
        }
        for e in rated
    ]
    graded = results["metric"] in GRADED_METRICS
    used = {s["signal"] for e in rated for s in e["signals"]}
    columns = (
        *_arm_columns(results),
        Column("n", "labels a run", "count"),
        *([Column("n_left_out", "left out", "count")] if any(row["n_left_out"] for row in rows) else []),
        Column("error", "below 100 (%)" if graded else "wrong (%)", "percent"),
        *(Column(signal, f"AURC, {title} (%)", "percent") for signal, title in SIGNAL_TITLES.items() if signal in used),
    )
    note = (
        "AURC: area under the risk-coverage curve, lower is better; a signal that knows nothing has the share of wrong "
        "labels. All signals are rated on the labels that carry every one of them. The audit read sealed targets after "
        "all training (uses gold)."
    )
    if graded:
        note += f" Wrong is every label that scores below 100 in {METRIC_NAMES[results['metric']]}."
    return Table("signals", "Selection signals on the audited pseudo-labels", columns, tuple(rows), None, note)


def _group_table(results: Mapping[str, Any]) -> Table:
    """Groups down, arms across."""
    names = list(dict.fromkeys(_key(g) for g in results["groups"]))
    labels = {_key(e): e["label"] for e in results["arms"]}
    names_of = {e["arm"]: f"{e['arm']} ({GOLD_MARK})" if e["uses_gold"] else e["arm"] for e in results["arms"]}
    keys = {
        _key(g): ", ".join(filter(None, (names_of[g["arm"]], setting_text(g["setting"])))) for g in results["groups"]
    }
    by_group: dict[str, dict[str, Any]] = {}
    for g in results["groups"]:
        row = by_group.setdefault(g["group"], {"group": g["group"], "n": 0, **dict.fromkeys(keys.values())})
        row["n"] = max(row["n"], g["n"])
        row[keys[_key(g)]] = g["value"]
    columns = (
        Column("group", "group"),
        Column("n", "rows", "count"),
        *(Column(keys[key], labels[key], "percent") for key in names),
    )
    return Table(
        "groups", f"{METRIC_NAMES[results['metric']].capitalize()} by group (%)", columns, tuple(by_group.values())
    )


def _sweep_table(results: Mapping[str, Any]) -> Table:
    columns = (
        Column("key", "key"),
        Column("arm", "arm"),
        Column("n_values", "values", "count"),
        Column("mean", "mean (%)", "percent"),
        Column("sd", "sd over values", "percent"),
        Column("chance_sd", "of chance alone", "percent"),
        Column("p_value", "p", "p"),
        Column("least", "least (%)", "percent"),
        Column("most", "most (%)", "percent"),
    )
    gold = {e["arm"]: e["uses_gold"] for e in results["arms"]}
    rows = [
        {**line, "arm": cell_label(line["arm"], {}, uses_gold=gold[line["arm"]])} for line in results["sweep_spread"]
    ]
    return Table("sweep", "Spread over the values of a key", columns, tuple(rows))


def _row_table(results: Mapping[str, Any]) -> Table:
    """Rows of each split, and how many were left out."""
    columns = (
        *(
            Column(f"set {key}", key)
            for key in results["sweep"]
            if any(key in line["setting"] for line in results["rows"])
        ),
        Column("split", "split", "count"),
        Column("labeled", "labelled", "count"),
        Column("unlabeled", "unlabelled", "count"),
        Column("test", "test", "count"),
        Column("duplicates_dropped", "duplicates left out", "count"),
        Column("rejected", "bad, left out", "count"),
        Column("not_drawn", "not drawn", "count"),
    )
    rows = [
        {**line, **{f"set {key}": value_text(value) for key, value in line["setting"].items()}}
        for line in results["rows"]
    ]
    return Table("rows", "Rows", columns, tuple(rows), None, "Duplicates and bad rows leave before rows are drawn.")


def _run_table(results: Mapping[str, Any]) -> Table:
    """Every run: its value, or why there is none."""
    rows = []
    for e in (*results["arms"], *results["controls"]):
        for run in e["by_run"]:
            rows.append({**_names(e), **run, "status": "done", "error": ""})
        rows += [{**_names(e), **run, "value": None, "n_unparsed": None} for run in e["unfinished"]]
    columns = (
        *_arm_columns(results),
        Column("split", "split", "count"),
        Column("seed", "seed", "count"),
        Column("value", f"{METRIC_NAMES[results['metric']]} (%)", "percent"),
        Column("n_unparsed", "unparsed", "count"),
        Column("status", "state"),
        Column("error", "reason"),
    )
    return Table("runs", "Runs", columns, tuple(rows))


def _arm_columns(results: Mapping[str, Any]) -> tuple[Column, ...]:
    """The arm, and in a sweep its setting: a column for each key, or one for all where each setting has one key."""
    if len(results["sweep"]) > 1 and all(len(e["setting"]) < 2 for e in results["arms"]):
        return Column("arm", "arm"), Column("setting_text", "setting")
    return (Column("arm", "arm"), *(Column(f"set {key}", key) for key in results["sweep"]))


def _names(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the columns of `_arm_columns` hold."""
    settings = {f"set {key}": value_text(value) for key, value in entry["setting"].items()}
    names = {"arm": arm_label(entry["arm"], uses_gold=entry["uses_gold"]), "name": entry["arm"]}
    return settings | names | {"setting_text": setting_text(entry["setting"])}


def _state(entry: Mapping[str, Any]) -> str:
    if entry["status"] == "done":
        return "done"
    n_done, unfinished = len(entry["by_run"]), entry["unfinished"]
    failed = [run for run in unfinished if run["status"] == "failed"]
    is_partial = n_done or 0 < len(failed) < len(unfinished)
    counts = f"{n_done} of {n_done + len(unfinished)} done" if is_partial else entry["status"]
    return f"{counts}, {len(failed)} failed" if is_partial and failed else counts


def _key(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["arm"], str(entry["setting"])


def _ends(entry: Mapping[str, Any] | None) -> tuple[float, float] | None:
    return None if entry is None or entry["ci_low"] is None else (entry["ci_low"], entry["ci_high"])
