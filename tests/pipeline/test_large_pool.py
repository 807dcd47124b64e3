"""Memory of every stage over pools of two sizes."""

import tracemalloc
from pathlib import Path

import pytest

from semievol.backends import embed
from semievol.config import parse_config
from semievol.pipeline import run
from semievol.stage import SilentReporter
from semievol.stages import justify
from tests.pipeline.conftest import FAKE, write_task

SMALL, LARGE = 9_000, 13_000
"""Half of them, which the second round looks at, fill all caches (4,096 rows)."""
HELD_BYTES = 300


class Peaks(SilentReporter):
    """The largest traced memory of each stage beyond what there was at its start."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self._before = 0

    def stage(self, name: str, text: str) -> None:
        self._before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()

    def done(self, name: str, text: str, seconds: float) -> None:
        self.bytes[name] = tracemalloc.get_traced_memory()[1] - self._before


def stage_peaks(folder: Path, n: int) -> dict[str, int]:
    folder.mkdir()
    paths = write_task(folder, {"labeled": 24, "unlabeled": n, "test": 40})
    peaks = Peaks()
    config = parse_config({"output_dir": str(folder / "run"), "data": paths, "rounds": 2, **FAKE})
    tracemalloc.start()
    try:
        run(config, reporter=peaks)
    finally:
        tracemalloc.stop()
    return peaks.bytes


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_stage_holds_the_rows_of_the_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(justify, "WINDOW", 64)  # blocks of 512 rows: those of 4,096 would look like growth
    monkeypatch.setattr(embed, "BLOCK_CELLS", 1_000_000)  # as would blocks of similarities below 64 MB
    small, large = (stage_peaks(tmp_path / str(n), n) for n in (SMALL, LARGE))
    growth = {name: (large[name] - small[name]) / (LARGE - SMALL) for name in large}
    # A row kept as objects takes a thousand bytes and more. The second round has kept rows in its retrieval index.
    held = {
        name: round(bytes_) for name, bytes_ in growth.items() if bytes_ > HELD_BYTES and name != "round-2/retrieve"
    }
    assert held == {}
    assert growth["round-2/retrieve"] < 1500
