"""The example that shows the whole method runs, on few rows."""

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
def test_example_method_runs(monkeypatch, capsys):
    pytest.importorskip("sentence_transformers")
    path = Path(__file__).resolve().parents[2] / "examples" / "method.py"
    spec = importlib.util.spec_from_file_location("method", path)
    method = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(method)
    generate = method.generate_tickets
    monkeypatch.setattr(
        method, "generate_tickets", lambda seed: generate(seed, n_labeled=20, n_unlabeled=30, n_test=20)
    )
    trainer = method.CONFIG.trainer.model_copy(update={"num_train_epochs": 1.0})
    monkeypatch.setattr(method, "CONFIG", method.CONFIG.model_copy(update={"trainer": trainer}))
    method.main()
    assert "difference" in capsys.readouterr().out
