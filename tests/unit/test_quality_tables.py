"""The tables over all cells of benchmarks/quality.py."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from quality_tables import read_cells, tables


def results(value, difference, *, status="done"):
    of_all = {"by_run": [{}, {}], "unfinished": [], "seed_sd": None, "majority": 0.4}
    arms = [
        {"arm": "sft_matched", "label": "SFT, matched steps", "status": "done", "value": 0.45} | of_all,
        {"arm": "semievol", "label": "SemiEvol", "status": status, "value": value} | of_all,
    ]
    arms[0] |= {"sampling_se": 0.03, "split_sd": None, "unfinished": [{}]}
    arms[1] |= {"sampling_se": 0.03, "split_sd": 0.031}
    arms[1]["signals"] = [{"signal": "mean_nll", "error": 0.25, "curve": [[0.25, 0.0], [0.5, 0.125], [1.0, 0.25]]}]
    found = {"arm": "semievol", "reference": "sft_matched", "difference": difference, "ci_low": -1e-9, "ci_high": 0.1}
    part = {"arm": "semievol", "reference": "semievol-cl", "difference": 0.02, "ci_low": -0.01, "ci_high": 0.05}
    return {"sweep": {}, "main": "semievol", "arms": arms, "differences": [found], "parts": [part]}


def test_tables_have_a_column_a_cell_and_the_numbers_of_its_results(tmp_path):
    for name, found in {"a-20": results(0.525, 0.025), "b-50": results(None, 0.0, status="failed")}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found), encoding="utf-8")
    (tmp_path / "unfinished").mkdir()
    text = tables(read_cells(tmp_path))
    assert text.count("|  | a-20 | b-50 |") == 4
    assert "(runs a cell: a-20 2, b-50 2)" in text
    assert "| Most frequent answer | 40.0 | 40.0 |" in text
    assert "| SFT, matched steps | 45.0* (1 runs missing) |" in text
    assert "| SemiEvol | 52.5 ± 3.1 | failed |" in text
    assert "| SemiEvol | +2.5 [+0.0, +10.0] | +0.0 [+0.0, +10.0] |" in text
    assert "| SemiEvol | 75.0, 87.5 | 75.0, 87.5 |" in text
