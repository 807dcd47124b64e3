"""Draw what a run found.

Reads   evaluate/results and samples of what the other stages wrote
Writes  results.json, report.html

Every number comes from stored rows, so drawing again gives the same.
"""

from typing import Any

from semievol.artifacts import RunDir
from semievol.config import RunConfig, recipe_differences
from semievol.report import draw_report
from semievol.stage import Stage, StageContext, StageStats
from semievol.versions import environment

SCHEMA_VERSION = 1
"""Of results.json; docs/run-folder.md describes it."""


def assemble_results(config: RunConfig, run_dir: RunDir) -> dict[str, Any]:
    """The content of results.json."""
    found = run_dir.read_json("evaluate/results")
    manifest = run_dir.manifest()
    differences = recipe_differences(config)
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": config.recipe,
        "recipe_differences": [{"key": k, "value": v, "recipe_value": r} for k, v, r in differences],
        "seed": config.seed,
        "rounds": config.rounds,
        "model": config.model.path,
        "task": {"type": config.task.type, **run_dir.read_json("data/task")},
        **found,
        "cascade": _cascades(config, manifest),
        "training": _trainings(config, run_dir),
        "stages": [{"name": name, **entry["cost"]} for name, entry in manifest.items()],
        "environment": environment(),
    }


def _cascades(config: RunConfig, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What the cascade saved and changed in each round; empty without one."""
    if config.propagate.cascade is None:
        return []
    steps = [
        [manifest[f"round-{r}/{n}"]["stats"]["cascade"] for n in ("propagate", "justify")]
        for r in range(1, config.rounds + 1)
    ]
    return [{"round": r, **saved, **changed} for r, (saved, changed) in enumerate(steps, 1)]


def _trainings(config: RunConfig, run_dir: RunDir) -> list[dict[str, Any]]:
    names = ["adapt"] if config.adapt.enabled else []
    names += ["warmup", *(f"round-{r}/evolve" for r in range(1, config.rounds + 1))]
    names += ["control"] if config.control.enabled else []
    return [{"stage": name, **run_dir.read_json(f"{name}/training")} for name in names]


def run(ctx: StageContext) -> StageStats:
    """Write results.json and report.html."""
    results = assemble_results(ctx.config, ctx.run_dir)
    ctx.begin()
    ctx.run_dir.write_json("results", results)
    path = ctx.run_dir.write_text("report.html", draw_report(ctx.config, ctx.run_dir, results))
    return {"report": path.name}  # the folder may move


STAGE = Stage(
    "report",
    reads=("evaluate/results", *(f"{name}/training" for name in ("adapt", "warmup", "evolve", "control"))),
    writes=("results", "report"),
    sections=("report", "recipe"),
    run=run,
)
