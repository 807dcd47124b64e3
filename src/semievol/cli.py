"""The command line: parse, call, exit code. 0 done, 1 the work failed, 2 the user's to change."""

import io
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from semievol import __version__
from semievol.errors import SemiEvolError

if TYPE_CHECKING:
    from semievol.artifacts import RunDir

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Semi-supervised fine-tuning: few labelled rows, many unlabelled ones, one measured result.\n\n"
    "Start with `semievol demo`, then `semievol init my.csv -o config.yaml`, `semievol check config.yaml`, "
    "`semievol run config.yaml`.",
)


def _expand(path: Optional[Path]) -> Optional[Path]:  # noqa: UP045
    """`~` in options: shells leave it as it is in `--output-dir=~/runs`."""
    if path is None or not str(path).startswith("~"):
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        raise typer.BadParameter(
            f"{path}: there is no such home folder; put ./ before a name that begins with ~"
        ) from None


Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time on Python 3.10
    typer.Argument(metavar="[KEY=VALUE]...", help="Override config keys, for example `select.keep_fraction=0.3`."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

Source = Annotated[str, typer.Argument(metavar="CONFIG", help="Config file, `demo:tickets` or `demo:docstrings`.")]
Seeds = Annotated[str, typer.Option(help="How many seeds of training and sampling, or a list: `5`, or `3,4,7`.")]
Splits = Annotated[str, typer.Option(help="How many cuts of the rows, or a list; a demo makes new rows for each.")]
Reference = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Arm to compare with [default: the one an earlier call named, else sft_matched, sft or the first]."
    ),
]
UseGold = Annotated[
    bool,
    typer.Option("--use-gold", help="Open the sealed targets of the unlabelled rows: for the oracle arms and audits."),
]
BaseModel = Annotated[Optional[str], typer.Option("--model", help="Another base model: hub id or folder.")]  # noqa: UP045
Folder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--output-dir", "-o", callback=_expand, help="Folder of the comparison."),
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", callback=_expand, help="Config file.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", callback=_expand, help="Run folder.")]
Jobs = Annotated[
    int, typer.Option(min=1, help="Processes that share the work; the results are the same up to rounding.")
]
KeepModels = Annotated[
    bool,
    typer.Option(help="Keep the trained models; else each goes when no run needs it any more. Predictions stay."),
]
PlanOnly = Annotated[
    bool, typer.Option("--plan", help="Say how many runs there are and how long they will take, and run nothing.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Run even if it may cost more than `generator.confirm_above_cost`.")]
Format = Annotated[
    str, typer.Option("--format", help="Of the main table: `text`, `csv`, `md` or `tex`; `json` is all results.")
]


def main() -> None:
    """Run the command line."""
    # How long a thread of torch waits actively. Always: threads starve each other when the machine has other work;
    # never: the many short operations of a small model lose more to waking up than they gain from a second thread.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    _spare_characters()
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: list[str]) -> int:
    """Run one command; returns its exit code. Deliberate errors are one message, never a traceback."""
    try:
        code = app(args=arguments, prog_name="semievol", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SemiEvolError as error:
        _say_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _say_error("interrupted")
        return 130
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        return 1
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the parser
            _say_error(error.format_message())
            return 2
        raise


def _spare_characters() -> None:
    """Write `?` for what a terminal cannot show (`PYTHONIOENCODING=ascii`), and never fail over it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def demo(
    task: Annotated[str, typer.Option(help="`tickets` (synthetic) or `docstrings` (real text).")] = "tickets",
    seed: Annotated[int, typer.Option(help="Seed of the rows, of sampling and of training.")] = 0,
    output_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output-dir", "-o", callback=_expand, help="Run folder [default: runs/demo-TASK-seed-SEED]."),
    ] = None,
    overrides: Overrides = None,
    json_output: Json = False,
) -> None:
    """Run the whole method on an embedded task with the embedded model.

    Example: `semievol demo --seed 1`
    """
    from semievol.demo.running import prepare_demo

    config = prepare_demo(task, seed=seed, output_dir=output_dir, overrides=overrides or [])
    folder = [] if output_dir is None else ["--output-dir", str(output_dir)]
    again = shlex.join(["semievol", "demo", "--task", task, "--seed", str(seed), *folder, *(overrides or [])])
    _run(config, again=again, json_output=json_output)


@app.command()
def init(
    files: Annotated[
        list[Path], typer.Argument(help="One table to be split, or labelled, unlabelled and test tables.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", callback=_expand, help="Config to write.")] = Path(
        "config.yaml"
    ),
    model: Annotated[Optional[str], typer.Option(help="Base model: hub id or folder.")] = None,  # noqa: UP045
    force: Annotated[bool, typer.Option(help="Overwrite an existing config.")] = False,
) -> None:
    """Look at data files and write a commented config for them.

    Example: `semievol init labeled.csv unlabeled.csv test.csv -o config.yaml`
    """
    from semievol.errors import ConfigError
    from semievol.proposing import propose_config

    try:
        _check_new_file(output, force=force)
        output.write_text(propose_config(files, model=model), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written: {error.strerror}; name another place") from error
    typer.echo(f"wrote {output}\nnext: {shlex.join(['semievol', 'check', str(output)])}")


def _check_new_file(path: Path, *, force: bool) -> None:
    from semievol.errors import ConfigError

    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; name a file in it, such as {path / 'config.yaml'}")
    if not path.parent.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {path.parent}; make it, or name another place")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; add --force to overwrite it")


@app.command()
def check(
    config: ConfigFile,
    overrides: Overrides = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few real steps to estimate the whole run.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Find what would fail later, and show what a run will do, without running it.

    Example: `semievol check config.yaml --measure`
    """
    from rich.console import Console

    from semievol.checking import check_run
    from semievol.config import load_config

    found = check_run(load_config(config, overrides or []), measure=measure)
    if json_output:
        _print_json(found.to_json())
    else:
        Console().print(found.render())
    if found.faults:
        raise typer.Exit(2)


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    from_stage: Annotated[
        Optional[str], typer.Option("--from", help="Run this stage and all after it again, such as `select`.")  # noqa: UP045
    ] = None,
    yes: Yes = False,
    json_output: Json = False,
) -> None:
    """Run the method; run it again to go on after an interruption.

    Example: `semievol run config.yaml seed=1 output_dir=runs/seed-1`
    """
    from semievol.config import load_config

    settings = load_config(config, overrides or [])
    if not yes:
        from semievol.confirming import refuse_unconfirmed_cost

        refuse_unconfirmed_cost(settings)
    again = shlex.join(["semievol", "run", str(config), *(overrides or []), *(["--yes"] if yes else [])])
    _run(settings, again=again, from_stage=from_stage, json_output=json_output)


@app.command()
def status(
    run_path: RunFolder,
    json_output: Json = False,
) -> None:
    """Show which stages of a run are done and what they found; of a comparison how many runs are, and why some failed.

    Example: `semievol status runs/demo-tickets-seed-0`
    """
    from semievol.comparison import is_comparison
    from semievol.summary import render_status, status_of

    if is_comparison(run_path):
        from semievol.compare_command import describe_failures, status_of_comparison

        counts = status_of_comparison(run_path)
        if json_output:
            _print_json(counts)
        else:
            typer.echo(f"{counts['done']} runs done, {counts['failed']} failed, {counts['pending']} pending")
            typer.echo(describe_failures(run_path), nl=False)
        return
    found = status_of(run_path)
    if json_output:
        _print_json(found)
    else:
        _print(render_status(found))


@app.command()
def cancel(
    run_path: RunFolder,
    json_output: Json = False,
) -> None:
    """Stop the fine-tuning jobs and batches that a run has under way at a server.

    Example: `semievol cancel runs/mine`
    """
    from semievol.cancelling import cancel_run

    stopped = cancel_run(run_path)
    if json_output:
        _print_json([s.to_json() for s in stopped])
    else:
        typer.echo("\n".join(s.render() for s in stopped) or "nothing is under way")


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Run folder, model folder or hub id.")],
    test: Annotated[str, typer.Option("--test", help="Table with targets.")],
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--config", callback=_expand, help="Config that describes the task, for a MODEL."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Measure a run's model, or any model, on a table with targets.

    Example: `semievol evaluate runs/mine --test new.csv`
    """
    from semievol.evaluating import evaluate_file
    from semievol.progress import ConsoleReporter

    with ConsoleReporter() as reporter:
        summary = evaluate_file(target, test, config=config, reporter=reporter)
    if json_output:
        _print_json(summary.to_json())
    else:
        _print(summary.render())


@app.command()
def predict(
    run_path: RunFolder,
    input_path: Annotated[str, typer.Argument(metavar="INPUT", help="Table of new rows; no targets needed.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=_expand, help="CSV, JSONL or Parquet file to write.")
    ],
    abstain_below: Annotated[
        float | None,
        typer.Option("--abstain-below", min=0.0, max=1.0, help="Leave answers under this confidence empty."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Answer new rows with the final model of a run.

    Example: `semievol predict runs/mine new.csv -o answered.csv --abstain-below 0.8`
    """
    from semievol.predicting import predict_file
    from semievol.progress import ConsoleReporter

    with ConsoleReporter() as reporter:
        summary = predict_file(run_path, input_path, output, abstain_below=abstain_below, reporter=reporter)
    if json_output:
        _print_json(summary.to_json())
    else:
        _print(summary.render())


@app.command()
def export(
    run_path: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", callback=_expand, help="Folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into the base.")] = False,
    which: Annotated[str, typer.Option(help="`semievol`, `sft` or `sft_matched`.")] = "semievol",
) -> None:
    """Write the final model, or one it was compared with, as an ordinary folder, with a model card of measured results.

    Example: `semievol export runs/mine --merge -o model/`
    """
    from semievol.exporting import export_model

    typer.echo(f"wrote {export_model(run_path, output, merge=merge, which=which)}")


@app.command()
def compare(
    config: Source,
    overrides: Overrides = None,
    arms: Annotated[str, typer.Option(help="`all`, or names with commas; an unknown one lists them.")] = "all",
    seeds: Seeds = "5",
    splits: Splits = "1",
    reference: Reference = None,
    use_gold: UseGold = False,
    model: BaseModel = None,
    output_dir: Folder = None,
    jobs: Jobs = 1,
    keep_models: KeepModels = True,
    plan_only: PlanOnly = False,
    yes: Yes = False,
    table_format: Format = "text",
    json_output: Json = False,
) -> None:
    """Run several ways to use the same rows, over seeds, and say which is better and how sure that is.

    Example: `semievol compare demo:tickets --arms sft,sft_matched,semievol --seeds 3`
    """
    from semievol.compare_command import Options, check_format, run_comparison
    from semievol.progress import ConsoleReporter

    check_format(table_format)
    show_plan = _print_json if plan_only and (json_output or table_format == "json") else None
    options = Options(
        seeds, splits, reference, use_gold, model, output_dir, jobs, keep_models, plan_only, yes, show_plan
    )
    with ConsoleReporter() as reporter, _resumable(f"semievol {shlex.join(sys.argv[1:])}"):
        folder = run_comparison(config, overrides or [], arms=arms, options=options, reporter=reporter)
    if plan_only:
        return
    _show_comparison(folder, table_format=table_format, json_output=json_output)


@app.command()
def sweep(
    config: Source,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=V1,V2,...",
            help="What is swept: a config key, or `n`, `theta`, `k`, `unlabeled_ratio`, `rewordings=5`. "
            "A config key with one value is an override.",
        ),
    ],
    arms: Annotated[Optional[str], typer.Option(help="[default: sft_matched,semievol]")] = None,  # noqa: UP045
    cartesian: Annotated[
        bool, typer.Option("--cartesian", help="All combinations, in the place of one key at a time.")
    ] = False,
    seeds: Seeds = "5",
    splits: Splits = "1",
    reference: Reference = None,
    use_gold: UseGold = False,
    model: BaseModel = None,
    output_dir: Folder = None,
    jobs: Jobs = 1,
    keep_models: KeepModels = True,
    plan_only: PlanOnly = False,
    yes: Yes = False,
    table_format: Format = "text",
    json_output: Json = False,
) -> None:
    """Run arms at several values of a few keys; stages whose inputs do not change run once.

    Example: `semievol sweep demo:tickets theta=0.3,0.5,0.8 n=1,2,4 --seeds 3`
    """
    from semievol.compare_command import Options, check_format, run_sweep
    from semievol.progress import ConsoleReporter

    check_format(table_format)
    show_plan = _print_json if plan_only and (json_output or table_format == "json") else None
    options = Options(
        seeds, splits, reference, use_gold, model, output_dir, jobs, keep_models, plan_only, yes, show_plan
    )
    with ConsoleReporter() as reporter, _resumable(f"semievol {shlex.join(sys.argv[1:])}"):
        folder = run_sweep(config, values, arms=arms, cartesian=cartesian, options=options, reporter=reporter)
    if plan_only:
        return
    _show_comparison(folder, table_format=table_format, json_output=json_output)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", callback=_expand, help="Folder of a run or of a comparison.")
    ],
    table_format: Format = "text",
    json_output: Json = False,
) -> None:
    """Draw the report of a run or a comparison again from its stored rows.

    Example: `semievol report runs/compare-tickets --format md`
    """
    from semievol.artifacts import RunDir
    from semievol.comparison import is_comparison
    from semievol.errors import ConfigError
    from semievol.pipeline import redraw
    from semievol.progress import ConsoleReporter
    from semievol.summary import read_run_config

    if is_comparison(folder):
        _show_comparison(folder, table_format=table_format, json_output=json_output)
        return
    if table_format != "text":
        raise ConfigError(f"--format {table_format}: {folder} is a run, which has no tables to print; use --json")
    run_dir = RunDir(folder)
    with ConsoleReporter() as reporter, _resumable(shlex.join(["semievol", "report", str(folder)])):
        redraw(read_run_config(folder), run_dir, reporter=reporter)
    _show_results(run_dir, json_output=json_output)


def _show_comparison(folder: Path, *, table_format: str, json_output: bool) -> None:
    from semievol.compare_command import describe_failures, describe_lost, show_comparison

    shown = show_comparison(folder, table_format="json" if json_output else table_format)
    if isinstance(shown, str):
        typer.echo(shown)
    else:
        _print(shown)
    failures = [text for text in (describe_failures(folder), describe_lost(folder)) if text]
    for text in failures:
        _say_error(text)
    if failures:
        raise typer.Exit(1)


def _run(config: Any, *, again: str, from_stage: str | None = None, json_output: bool) -> None:
    from semievol import pipeline
    from semievol.progress import ConsoleReporter

    with ConsoleReporter() as reporter, _resumable(again):
        run_dir = pipeline.run(config, reporter=reporter, from_stage=from_stage)
    _show_results(run_dir, json_output=json_output)


def _show_results(run_dir: "RunDir", *, json_output: bool) -> None:
    from semievol.summary import render_results

    results = run_dir.read_json("results")
    if json_output:
        _print_json(results)
    else:
        _print(render_results(results, run_dir.path))


@contextmanager
def _resumable(again: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _say_error(f"stopped; what is done is kept. Go on with: {again}")
        raise typer.Exit(130) from None


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console(highlight=False).print(renderable)


def _print_json(value: Any) -> None:
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    typer.echo(json.dumps(value, indent=2, ensure_ascii=not is_unicode))


def _say_error(text: str) -> None:
    typer.echo(f"semievol: {text}", err=True)


if __name__ == "__main__":
    main()
