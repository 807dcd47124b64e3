"""Every config that ships is parsed, and the documents that are written from code are current."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from semievol.config import load_config, parse_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_example_config_is_valid_and_says_how_it_runs(path):
    load_config(path)
    head = path.read_text(encoding="utf-8").splitlines()[:4]
    assert any(line.startswith("# command   semievol run ") for line in head)
    assert any(line.startswith("# hardware  ") for line in head)


DATA = {"labeled": "labeled.csv", "unlabeled": "unlabeled.csv"}
BLOCKS = [
    block
    for name in ("backends.md", "scaling.md")
    for block in re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.M | re.S)
]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_config_in_the_docs_is_valid(block):
    parse_config({"data": DATA} | yaml.safe_load(block))


def test_configuration_docs_are_current():
    tool = ROOT / "tools" / "write_config_docs.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
