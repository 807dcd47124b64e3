"""Run a demo task over several seeds and say what SemiEvol gains over the control, with an interval over the seeds.

    python benchmarks/demo_seeds.py --task tickets --seeds 0 1 2 3 4 [KEY=VALUE ...]

Each seed draws its own rows, samples and training order. Finished seeds are not run again.
Writes `runs/demo-TASK-seeds.json` and prints a Markdown table.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import numpy as np
from scipy import stats

from semievol.demo.running import prepare_demo
from semievol.pipeline import run
from semievol.progress import ConsoleReporter

MODELS = ("base", "sft", "sft_matched", "semievol")


def main() -> None:
    """Run what is missing, then tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="tickets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    results = [run_seed(arguments.task, seed, arguments.overrides) for seed in arguments.seeds]
    summary = summarize(arguments.seeds, results)
    path = Path(f"runs/demo-{arguments.task}-seeds.json")
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(render(summary))


def run_seed(task: str, seed: int, overrides: list[str]) -> dict:
    """One run; a finished one is read."""
    config = prepare_demo(task, seed=seed, output_dir=None, overrides=overrides)
    with ConsoleReporter() as reporter:
        return run(config, reporter=reporter).read_json("results")


def summarize(seeds: list[int], results: list[dict]) -> dict:
    """Accuracy by seed, and paired differences with a t interval over seeds (each seed has its own test rows)."""
    rows = []
    for seed, found in zip(seeds, results, strict=True):
        accuracy = {m["model"]: m["value"] for m in found["metrics"]}
        precision = found["pseudo_labels"][0]["precision"]
        seconds = sum(s["seconds"] for s in found["stages"])
        rows.append(
            {"seed": seed, **accuracy, "all": precision["all"]["value"], "kept": precision["kept"]["value"]}
            | {"n_test": found["metrics"][0]["n"], "seconds": round(seconds)}
        )
    differences = {}
    for reference in ("sft_matched", "sft", "base"):
        gains = np.array([row["semievol"] - row[reference] for row in rows])
        interval = stats.ttest_1samp(gains, 0.0).confidence_interval(0.95)
        differences[reference] = {"mean": gains.mean(), "ci_low": interval.low, "ci_high": interval.high}
    return {"rows": rows, "differences": differences, "environment": results[0]["environment"]}


def render(summary: dict) -> str:
    """The table as Markdown, in percent and points."""
    names = (*MODELS, "all", "kept")
    lines = ["| seed | " + " | ".join((*MODELS, "precision of all", "of kept", "seconds")) + " |"]
    lines.append("| --- " * (len(names) + 2) + "|")
    for row in summary["rows"]:
        shown = " | ".join(f"{100 * row[n]:.1f}" for n in names)
        lines.append(f"| {row['seed']} | {shown} | {row['seconds']} |")
    means = [100 * float(np.mean([row[n] for row in summary["rows"]])) for n in names]
    lines.append("| mean | " + " | ".join(f"{m:.1f}" for m in means) + " | |")
    for reference, d in summary["differences"].items():
        interval = f"[{100 * d['ci_low']:+.1f}, {100 * d['ci_high']:+.1f}]"
        lines.append(f"\nSemiEvol - {reference}: {100 * d['mean']:+.1f} points, 95% {interval} over seeds")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
