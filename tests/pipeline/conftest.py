"""A small task on disk, and the config of a run over it with the fake backends."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from semievol.config import RunConfig, parse_config

WORDS = [
    "amber",
    "birch",
    "cedar",
    "dune",
    "ember",
    "fjord",
    "grove",
    "heath",
    "inlet",
    "jetty",
    "knoll",
    "lagoon",
    "marsh",
    "oasis",
    "prairie",
    "quarry",
    "ridge",
]
FAKE = {"generator": {"type": "fake"}, "trainer": {"type": "fake"}, "embedder": {"type": "fake"}}
SIZES = {"labeled": 24, "unlabeled": 80, "test": 40}


def write_task(folder: Path, sizes: dict[str, int] = SIZES) -> dict[str, str]:
    """Rows whose answer the fake generator can read off the question (`#B`); returns the path of each split."""
    generator = random.Random(7)
    paths = {}
    for split, n in sizes.items():
        paths[split] = str(folder / f"{split}.csv")
        with Path(paths[split]).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("id", "question", "options", "answer"))
            for i in range(n):
                answer = generator.choice("ABC")
                question = f"{' '.join(generator.choices(WORDS, k=9))} {split}{i} #{answer}"
                writer.writerow((f"{split}-{i}", question, json.dumps(["lost", "late", "broken"]), answer))
    return paths


@pytest.fixture(scope="session")
def task_files(tmp_path_factory) -> dict[str, str]:
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture
def make_config(task_files, tmp_path):
    def make(**changes: Any) -> RunConfig:
        return parse_config({"output_dir": str(tmp_path / "run"), "data": task_files, **FAKE, **changes})

    return make
