"""A run in a few lines of a terminal: the table at the end of a run, and its status."""

import json
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from semievol.artifacts import CONFIG, RunDir
from semievol.comparison import comparison_of
from semievol.config import RunConfig, parse_config
from semievol.errors import ArtifactError, ConfigError
from semievol.pipeline import plan_steps

MODEL_TITLES = {
    "base": "base model",
    "sft": "SFT on the labelled rows",
    "sft_matched": "SFT, as many steps as SemiEvol",
    "semievol": "SemiEvol",
}


def render_results(results: dict[str, Any], path: Path) -> Group:
    """The main table, the paired differences, the pseudo-labels and where the report lies."""
    parts: list[Any] = []
    if results["metrics"]:
        parts.append(_metric_table(results))
        parts += [Text(_difference(c)) for c in results["comparisons"] if c["a"] == "semievol"]
    parts += [Text(line) for line in _pseudo_label_lines(results)]
    differences = results["recipe_differences"]
    if differences:
        listed = ", ".join(f"{d['key']}={d['value']} ({d['recipe_value']})" for d in differences)
        parts.append(Text(f"differs from recipe {results['recipe']}: {listed}", style="dim"))
    parts.append(Text(f"report  {path / 'report.html'}\nresults {path / 'results.json'}"))
    return Group(*parts)


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def _metric_table(results: dict[str, Any]) -> Table:
    first = results["metrics"][0]
    table = Table(title=f"{first['n']} test rows", title_justify="left", box=None, pad_edge=False)
    for name in ("model", first["metric"] + " %", "95% interval", "unparsed"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for m in results["metrics"]:
        style = "bold" if m["model"] == "semievol" else ""
        interval = f"{percent(m['ci_low'])} to {percent(m['ci_high'])}"
        table.add_row(MODEL_TITLES[m["model"]], percent(m["value"]), interval, str(m["n_unparsed"]), style=style)
    return table


def _difference(c: dict[str, Any]) -> str:
    interval = f"{points(c['ci_low'])} to {points(c['ci_high'])}"
    return (
        f"SemiEvol - {MODEL_TITLES[c['b']]}: {points(c['difference'])} points (95% {interval}, p = {c['p_value']:.2g})"
    )


def _pseudo_label_lines(results: dict[str, Any]) -> list[str]:
    lines = []
    for entry in results["pseudo_labels"]:
        line = f"round {entry['round']}: {entry['n_kept']} of {entry['n_labels']} pseudo-labels kept"
        found = [
            f"{percent(entry['precision'][k]['value'])}% of {k}" for k in ("all", "kept") if k in entry["precision"]
        ]
        lines.append(line + (f"; right: {', '.join(found)} ({entry['n_with_gold']} with gold)" if found else ""))
    return lines


def status_of(path: Path) -> dict[str, Any]:
    """What is done in a run folder.

    Raises:
        ArtifactError: If `path` is not the folder of a run.
    """
    config = read_run_config(path)
    manifest = RunDir(path).manifest()
    whole = comparison_of(path)
    names = list(manifest) if whole else [step.name for step in plan_steps(config)]  # an arm has steps of its own
    steps = [{"stage": name, "done": name in manifest, **manifest.get(name, {})} for name in names]
    results = path / "results.json"
    finished = results.exists() and all(s["done"] for s in steps)
    return {
        "run": str(path),
        "finished": finished,
        "stages": steps,
        "metrics": RunDir(path).read_json("results")["metrics"] if finished else [],
        **({"comparison": str(whole)} if whole else {}),
    }


def read_run_config(path: Path) -> RunConfig:
    """The configuration that a run folder was made with.

    Raises:
        ConfigError: If it is not the folder of a run.
        ArtifactError: If the configuration is damaged.
    """
    file = path / CONFIG
    if not file.exists():
        raise ConfigError(f"{path} is not the folder of a run: it has no {CONFIG}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{file} is damaged ({error}); run again with the config that it was made from") from error
    return parse_config(raw, source=str(file))


def render_status(found: dict[str, Any]) -> Group:
    """The status as a table."""
    table = Table(title=found["run"], title_justify="left", box=None, pad_edge=False)
    for name in ("stage", "state", "seconds", "found"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    for step in found["stages"]:
        stats = {k: v for k, v in step.get("stats", {}).items() if isinstance(v, int | float | str)}
        seconds = f"{step['cost']['seconds']:,.1f}" if step["done"] else ""
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in list(stats.items())[:5])
        table.add_row(step["stage"], "done" if step["done"] else "to do", seconds, shown)
    state = "finished" if found["finished"] else "not finished; run it again to go on"
    if "comparison" in found:
        state = f"a run of the comparison in {found['comparison']}, whose status says whether it is finished"
    return Group(table, Text(state))
