"""Every config that ships is parsed, and the documents that are written from code are current."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from semievol.checking import check_run
from semievol.config import load_config, parse_config
from tests.pipeline.conftest import write_task

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_example_config_is_valid_and_says_how_it_runs(path):
    load_config(path)
    head = path.read_text(encoding="utf-8").splitlines()[:4]
    assert any(line.startswith("# command   semievol run ") for line in head)
    assert any(line.startswith("# hardware  ") for line in head)


DATA = {"labeled": "labeled.csv", "unlabeled": "unlabeled.csv"}
BACKENDS, SCALING = (
    re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.M | re.S)
    for name in ("backends.md", "scaling.md")
)


@pytest.mark.parametrize("block", BACKENDS + SCALING, ids=range(len(BACKENDS + SCALING)))
def test_config_in_the_docs_is_valid(block):
    parse_config({"data": DATA} | yaml.safe_load(block))


HOSTED = [block for block in BACKENDS if yaml.safe_load(block)["generator"]["type"].startswith("openai")]


@pytest.mark.parametrize("block", HOSTED, ids=range(len(HOSTED)))
def test_hosted_config_in_the_docs_passes_the_check(block, tmp_path, monkeypatch, tiny_llama_dir):
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY"):
        monkeypatch.setenv(name, "sk-of-a-test")
    data = write_task(tmp_path, {"labeled": 12, "unlabeled": 8, "test": 6})
    raw = {"data": data, "output_dir": str(tmp_path / "run")} | yaml.safe_load(block)
    if "trainer" not in raw:  # trained here: the check opens the model's folder, and nothing is downloaded
        raw["model"]["path"] = tiny_llama_dir
    assert check_run(parse_config(raw)).faults == []


def test_configuration_docs_are_current():
    tool = ROOT / "tools" / "write_config_docs.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
