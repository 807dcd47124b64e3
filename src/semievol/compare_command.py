"""What stands behind `semievol compare` and `semievol sweep`: arguments to configs, seeds and folders, and the end."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from semievol.arms import ARMS as ALL_ARMS
from semievol.artifacts import RunDir
from semievol.comparing import compare
from semievol.comparison import read_comparison
from semievol.config import RunConfig, load_config
from semievol.demo.running import prepare_demo
from semievol.errors import ConfigError
from semievol.report_text import plural
from semievol.stage import Reporter
from semievol.sweeping import ALIASES, ARMS, plan_points, point_settings, split_arguments

DEMO = "demo:"
FORMATS = ("text", "csv", "md", "tex", "json")


@dataclass(frozen=True)
class Options:
    """What `semievol compare` and `semievol sweep` have in common, as typed."""

    seeds: str
    splits: str
    reference: str | None
    use_gold: bool
    model: str | None
    output_dir: Path | None
    jobs: int
    keep_models: bool
    plan_only: bool = False
    yes: bool = False
    show_plan: Callable[[dict[str, Any]], None] | None = None
    """Gets the plan as plain values."""


def run_comparison(source: str, overrides: Sequence[str], *, arms: str, options: Options, reporter: Reporter) -> Path:
    """`semievol compare`; returns the folder."""
    return _compare("compare", source, overrides, parse_names(arms), options, reporter)


def run_sweep(
    source: str,
    arguments: Sequence[str],
    *,
    arms: str | None,
    cartesian: bool,
    options: Options,
    reporter: Reporter,
) -> Path:
    """`semievol sweep`; returns the folder."""
    overrides, axes = split_arguments(arguments)
    for key in axes:
        _refuse_varied_key(key, f"sweep {key}")
    if not axes:
        single = f" ({overrides[0]} has one value, so it is an override)" if overrides else ""
        raise ConfigError(f"nothing to sweep{single}: give at least one key=v1,v2,..., for example n=1,2,3,4,5")
    points = plan_points(axes, cartesian=cartesian)
    names = list(ARMS) if arms is None else parse_names(arms)
    every = list(ALL_ARMS) if "all" in names else names
    few_shot = [name for name in every if name.startswith("few_shot") or name == "icl_distill"]
    without = next((key for key in ("k", "retrieve.k") if 0 in axes.get(key, ())), None)
    if few_shot and without is not None:
        raise ConfigError(
            f"sweep {without}=0: {', '.join(few_shot)} would show no demonstrations; leave the value or the arm out"
        )
    return _compare("sweep", source, overrides, names, options, reporter, settings=point_settings(points), sweep=axes)


def _compare(
    command: str,
    source: str,
    overrides: Sequence[str],
    arms: Sequence[str],
    options: Options,
    reporter: Reporter,
    **sweep: Any,
) -> Path:
    if options.model is not None and not options.model.strip():
        raise ConfigError("--model: the name is empty; give a hub id or a folder")
    folder = options.output_dir or default_folder(command, source, options.model)
    in_the_way = next((place for place in (folder, *folder.parents) if place.is_file()), None)
    if in_the_way is not None:
        raise ConfigError(f"--output-dir {folder}: {in_the_way} is a file; name another folder")
    splits = parse_numbers(options.splits, option="--splits")
    chosen = [*overrides, *([f"model.path={options.model}"] if options.model else [])]
    return compare(
        open_configs(source, chosen, splits=splits, folder=folder),
        arms,
        seeds=parse_numbers(options.seeds, option="--seeds"),
        splits=splits,
        reference=options.reference,
        use_gold=options.use_gold,
        output_dir=folder,
        jobs=options.jobs,
        keep_models=options.keep_models,
        time_steps=True,
        plan_only=options.plan_only,
        show_plan=options.show_plan,
        confirmed=options.yes,
        reporter=reporter,
        **sweep,
    )


def open_configs(
    source: str, overrides: Sequence[str], *, splits: Sequence[int], folder: Path
) -> RunConfig | Mapping[int, RunConfig]:
    """The config of a file, or for `demo:TASK` one a split, whose rows are made with the split's number as seed.

    Raises:
        ConfigError: If an override sets what a comparison varies itself, or the config is not valid.
    """
    for text in overrides:
        key = text.partition("=")[0].strip()
        _refuse_varied_key(key, text)
        if key in ALIASES:
            raise ConfigError(f"{text}: {key} is a key of `semievol sweep`; set {ALIASES[key]} here")
    if not source.startswith(DEMO):
        return load_config(Path(source), overrides)
    task = source.removeprefix(DEMO)
    return {
        s: prepare_demo(task, seed=s, output_dir=folder / "tasks" / f"split-{s}", overrides=overrides) for s in splits
    }


def _refuse_varied_key(key: str, text: str) -> None:
    options = {"seed": "--seeds", "data.seed": "--splits", "output_dir": "--output-dir"}
    if key in options:
        raise ConfigError(f"{text}: a comparison sets {key} for each run; use {options[key]}")


def default_folder(command: str, source: str, model: str | None = None) -> Path:
    """`runs/compare-NAME`, and with `--model` its last part behind it: another base model is another comparison."""
    name = source.removeprefix(DEMO) if source.startswith(DEMO) else Path(source).stem
    return Path("runs") / f"{command}-{name}{f'-{Path(model).name}' if model else ''}"


def parse_names(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_numbers(text: str, *, option: str) -> list[int]:
    """`5` is 0 to 4; with a comma the numbers themselves: `3,4,7`, or `3,` for one.

    Raises:
        ConfigError: If it is neither, or a number comes twice.
    """
    if not re.fullmatch(r"\s*(\d+|(\d+\s*,\s*)+\d*)\s*", text) or re.fullmatch(r"\s*0+\s*", text):
        raise ConfigError(f"{option} {text}: expected how many (5 is 0 to 4), or the numbers themselves, such as 3,4,7")
    if "," not in text:
        return list(range(int(text)))
    found = [int(part) for part in text.split(",") if part.strip()]
    if len(set(found)) < len(found):
        raise ConfigError(f"{option} {text}: a number comes twice")
    return found


def check_format(table_format: str) -> None:
    """Raises ConfigError if a table cannot be printed so."""
    if table_format not in FORMATS:
        raise ConfigError(f"--format {table_format}: choose one of {', '.join(FORMATS)}")


def show_comparison(folder: Path, *, table_format: str) -> str | Group:
    """Draw the report of a comparison; return its main table as text for a terminal or csv, md, tex, or all as json.

    Raises:
        ConfigError: If there is no such format.
        ArtifactError: If the folder holds no comparison.
    """
    # Statistics and figures are heavy, and nothing that runs needs them.
    from semievol.compare_report import short_table, write_compare_report

    check_format(table_format)
    report = write_compare_report(folder)
    if table_format == "json":
        return json.dumps(RunDir(folder).read_json("results"), indent=2, ensure_ascii=False)
    if table_format == "text":
        return Group(short_table(folder), Text(f"report  {report}\nresults {folder / 'results.json'}"))
    return (folder / "tables" / f"main.{table_format}").read_text(encoding="utf-8")


def status_of_comparison(folder: Path) -> dict[str, Any]:
    """How many runs are done, failed and pending, and why some failed. Raises ArtifactError if it is no comparison."""
    record = read_comparison(folder)
    counts = {status: sum(run.status == status for run in record.runs) for status in ("done", "failed", "pending")}
    return {"comparison": str(folder), **counts, "errors": {run.folder: run.error for run in record.failed}}


def describe_lost(folder: Path) -> str:
    """A line for the answers that a drawn report found lost or damaged; empty where there are none."""
    from semievol.compare_report import list_failures

    known = {run.error for run in read_comparison(folder).failed}
    found = list_failures(RunDir(folder).read_json("results"))
    return "\n".join(f"{f['label']}, {f['runs']}: {f['error']}" for f in found if f["error"] not in known)


def describe_failures(folder: Path) -> str:
    """A line for each failed run; empty where none failed."""
    failed = read_comparison(folder).failed
    if not failed:
        return ""
    first = f"{plural(len(failed), 'run')} failed; the command that asks for their arms tries again"
    return "\n".join([first, *(f"{run.folder}: {run.error}" for run in failed)])
