"""The import direction that design keeps: what is below never imports what is above."""

import ast
import subprocess
import sys
from pathlib import Path

import semievol

ROOT = Path(semievol.__file__).parent
LAYERS = (
    ("types", "errors"),
    ("config",),
    (
        "prompts",
        "answers",
        "metrics",
        "artifacts",
        "identities",
        "backends",
        "tables",
        "spool",
        "loading",
        "answering",
        "progress",
        "prices",
        "choice_reading",
        "answer_stream",
        "answer_windows",
    ),
    ("stage", "sft", "pools", "audit", "auditing", "scoring", "demonstrations", "sharing", "comparison"),
    ("stages",),
    (
        "pipeline",
        "arms",
        "sweeping",
        "compare_plan",
        "comparing",
        "runs",
        "predicting",
        "evaluating",
        "exporting",
        "model_card",
        "model_sizes",
        "costs",
        "checking",
        "summary",
        "cancelling",
        "money",
        "confirming",
    ),
    ("cli",),
)
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "sentence_transformers",
    "vllm",
    "openai",
    "ray",
    "matplotlib",
    "faiss",
)


def imported_modules(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(name: str) -> list[Path]:
    folder = ROOT / name
    return sorted(folder.glob("*.py")) if folder.is_dir() else [ROOT / f"{name}.py"]


def test_imports_point_downwards():
    for level, names in enumerate(LAYERS):
        above = {f"semievol.{name}" for later in LAYERS[level + 1 :] for name in later}
        for path in (p for name in names for p in files_of(name)):
            for module in imported_modules(path):
                assert ".".join(module.split(".")[:2]) not in above, f"{path.name} imports {module}"


def test_stages_do_not_import_each_other():
    for path in files_of("stages"):
        assert not {m for m in imported_modules(path) if m.startswith("semievol.stages")}, path.name


def test_stages_do_not_import_heavy_packages():
    for path in [*files_of("stages"), ROOT / "stage.py", ROOT / "pipeline.py", ROOT / "cli.py"]:
        assert not {m for m in imported_modules(path) if m.split(".")[0] in HEAVY}, path.name


def test_command_line_starts_without_heavy_packages():
    code = f"import sys, semievol.cli, semievol.pipeline; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
