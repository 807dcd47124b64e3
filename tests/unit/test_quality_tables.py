"""The tables over all cells of benchmarks/quality.py."""

import sys
from pathlib import Path

import pytest
from scipy import stats

from tests.unit.comparison_folder import write_folder

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import quality
from quality_tables import read_cells, tables


@pytest.mark.parametrize(("arguments", "folder"), [([], "fpb-50"), (["--sweep", "theta=0.3,0.5"], "fpb-50-theta")])
def test_each_form_of_the_command_plans_its_cells(tmp_path, monkeypatch, arguments, folder):
    given = []
    monkeypatch.setattr(quality, "compare", lambda *_, **options: given.append(options))
    monkeypatch.setattr(quality, "write_compare_report", lambda place: place)
    options = ["--cells", "fpb-50", "--draws", "2", "--output-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["quality.py", str(tmp_path), *options, *arguments])
    quality.main()
    assert [options["output_dir"] for options in given] == [tmp_path / folder]
    assert list(given[0]["splits"]) == [0, 1]


def runs(*values):
    return [{"split": split, "seed": 0, "value": value} for split, value in enumerate(values)]


def results(value, difference, *, status="done"):
    of_all = {"by_run": runs(0.4, 0.5), "unfinished": [], "seed_sd": None, "majority": 0.4}
    arms = [
        {"arm": "sft_matched", "label": "SFT, matched steps", "status": "done", "value": 0.45} | of_all,
        {"arm": "semievol", "label": "SemiEvol", "status": status, "value": value} | of_all,
    ]
    arms[0] |= {"at_chance": True, "split_sd": None, "unfinished": [{}]}
    arms[1] |= {"at_chance": False, "split_sd": 0.031}
    arms[1]["signals"] = [{"signal": "mean_nll", "error": 0.25, "curve": [[0.25, 0.0], [0.5, 0.125], [1.0, 0.25]]}]
    found = {"arm": "semievol", "reference": "sft_matched", "difference": difference, "ci_low": -1e-9, "ci_high": 0.1}
    part = {"arm": "semievol", "reference": "semievol-cl", "difference": 0.02, "ci_low": -0.01, "ci_high": 0.05}
    return {
        "sweep": {},
        "reference": "sft_matched",
        "main": "semievol",
        "arms": arms,
        "controls": [],
        "differences": [found],
        "parts": [part],
    }


def test_tables_have_a_column_a_cell_and_the_numbers_of_its_results():
    text = tables({"a-20": results(0.525, 0.025), "b-50": results(None, 0.0, status="failed")})
    assert text.count("|  | a-20 | b-50 |") == 4
    assert "(runs a cell: a-20 2, b-50 2)" in text
    assert "| Most frequent answer | 40.0 | 40.0 |" in text
    assert "| SFT, matched steps | 45.0* (1 runs missing) |" in text
    assert "| SemiEvol | 52.5 ± 3.1 | failed |" in text
    assert "| SemiEvol | +2.5 [+0.0, +10.0] | +0.0 [+0.0, +10.0] |" in text
    assert "| SemiEvol | 75.0, 87.5 | 75.0, 87.5 |" in text


def test_differences_over_all_cells_take_draws_as_a_sample_inside_each():
    cells = {name: results(0.5, 0.0) for name in ("a-20", "b-50", "one-draw")}
    for name, gains in {"a-20": (0.01, 0.05), "b-50": (-0.02, 0.04), "one-draw": (0.9,)}.items():
        cells[name]["arms"][1]["by_run"] = runs(*(0.4 + 0.1 * i + gain for i, gain in enumerate(gains)))
    # Means .03 and .01; squared errors .0004 and .0009, with two degrees of freedom.
    half = stats.t.ppf(0.975, 2) * 100 * (0.0004 + 0.0009) ** 0.5 / 2
    expected = f"+2.0 [{2 - half:+.1f}, {2 + half:+.1f}]"
    assert f"| SemiEvol | {expected} |  | 2 | 4 |" in tables(cells)
    assert f"| SFT, matched steps |  | -2.0 [{-2 - half:+.1f}, {-2 + half:+.1f}] | 2 | 4 |" in tables(cells)


def test_an_arm_with_a_control_of_its_own_is_compared_with_that():
    cells = {name: results(0.525, 0.025) for name in ("a-20", "b-50")}
    own = "sft_matched@semievol"
    for cell in cells.values():
        control = cell["arms"][0] | {"arm": own, "label": "SFT for as many steps as SemiEvol", "value": 0.35}
        cell["controls"] = [control | {"by_run": runs(0.3, 0.4), "unfinished": []}]
        cell["differences"][0]["reference"] = own
    text = tables(cells)
    assert "| SFT for as many steps as SemiEvol | 35.0* | 35.0* |" in text
    assert "| SemiEvol | +10.0 [+10.0, +10.0] |  | 2 | 4 |" in text
    assert "| SFT, matched steps |  | +0.0 [+0.0, +0.0] | 2 | 4 |" in text


def test_cells_are_the_comparisons_of_a_folder_but_its_sweeps(tmp_path):
    write_folder(tmp_path / "a-20", {"sft": 0.5, "semievol": 0.7}, seeds=(0,))
    write_folder(tmp_path / "a-20-theta", {"semievol": 0.7}, seeds=(0,), sweep={"theta": [0.3, 0.5]})
    (tmp_path / "unfinished").mkdir()
    cells = read_cells(tmp_path)
    assert list(cells) == ["a-20"]
    assert "| SemiEvol | 70.0 |" in tables(cells)
    write_folder(tmp_path / "a-100", {"sft": 0.5, "semievol": 0.8}, seeds=(0,))
    write_folder(tmp_path / "b-50", {"sft": 0.5, "semievol": 0.9}, seeds=(0,))
    assert list(read_cells(tmp_path)) == ["a-100", "a-20", "b-50"]
    assert list(read_cells(tmp_path, ["b-50", "a-20"])) == ["b-50", "a-20"]
