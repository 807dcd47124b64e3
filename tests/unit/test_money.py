"""Prices of whole runs, and what the command line does about them."""

import csv
import json
from pathlib import Path

import pytest

from semievol.checking import check_run
from semievol.cli import run_app
from semievol.compare_plan import WorkPlan, price_work
from semievol.config import RunConfig, load_config, parse_config
from semievol.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"labeled": 20, "unlabeled": 100, "test": 40}


@pytest.fixture
def data(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    paths = {}
    for split, n in SIZES.items():
        paths[split] = str(tmp_path / f"{split}.csv")
        with Path(paths[split]).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("id", "question", "options", "answer"))
            for i in range(n):
                options = json.dumps(["negative", "neutral", "positive"])
                writer.writerow((f"{split}{i}", f"sales of unit {split} {i} rose", options, "ABC"[i % 3]))
    return paths


def config(data, tmp_path, **changes) -> RunConfig:
    values = {
        "output_dir": str(tmp_path / "run"),
        "data": data,
        "model": {"path": "gpt-4o-mini"},
        "generator": {"type": "openai"} | changes.pop("generator", {}),
        "trainer": {"type": "openai"},
        "embedder": {"type": "openai"},
    }
    return parse_config(values | changes)


def test_check_prices_every_stage_from_the_real_prompts(data, tmp_path):
    found = check_run(config(data, tmp_path))
    assert found.faults == []
    stages = {s.stage: s for s in found.money.stages}
    assert set(stages) == {"warmup", "retrieve", "propagate", "justify", "evolve", "control", "evaluate"}
    assert stages["propagate"].requests == 400  # four configurations
    assert stages["justify"].requests == 200  # a verdict and a confidence at most
    assert stages["evaluate"].requests == 160
    plain = next(x for x in found.lengths if x.prompt == "test, no demonstration")
    assert stages["evaluate"].input_tokens == pytest.approx(160 * plain.median, rel=0.05)
    assert all(0 <= s.low <= s.high for s in stages.values())
    # A quarter of the rows to the base, the rest to the tuned model, at 1.25 of the estimate and 16 tokens each.
    most = 1.25 * stages["evaluate"].input_tokens * (0.25 * 0.15 + 0.75 * 0.30) + 16 * 160 * (0.25 * 0.6 + 0.75 * 1.2)
    assert stages["evaluate"].high == pytest.approx(most / 1e6, rel=0.01)
    warmup = stages["warmup"]
    assert warmup.low == pytest.approx(0.8 * warmup.training_tokens * 3.0 / 1e6)


def test_batches_cost_half(data, tmp_path):
    single = check_run(config(data, tmp_path)).money
    batch = check_run(config(data, tmp_path, generator={"type": "openai_batch"})).money
    cost = {m: next(s.high for s in m.stages if s.stage == "propagate") for m in (single, batch)}
    assert cost[batch] == pytest.approx(cost[single] / 2)


def test_unknown_price_is_said_and_not_taken_for_nothing(data, tmp_path):
    found = check_run(config(data, tmp_path, model={"path": "my-model"}))
    assert found.money.unknown == ("my-model", "training of my-model")
    assert all(s.high is None for s in found.money.stages if s.stage in ("propagate", "warmup"))
    assert any("generator.prices" in w and "my-model" in w for w in found.warnings)
    prices = {"prices": {"input": 0, "output": 0, "training": 0}}
    free = check_run(config(data, tmp_path, model={"path": "my-model"}, generator=prices)).money
    assert free.unknown == ()
    assert free.as_of == "config"


def test_limits_that_would_stop_the_run_are_warned_of(data, tmp_path):
    limits = {"max_requests": 500, "max_cost": 0.01, "confirm_above_cost": 0.02}
    found = check_run(config(data, tmp_path, generator=limits))
    assert found.faults == []
    for key in ("max_requests (500)", "max_cost (0.01)", "confirm_above_cost (0.02)"):
        assert any(key in w for w in found.warnings), key


def test_missing_key_is_a_warning_that_names_the_variable(data, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert any("OPENAI_API_KEY" in w for w in check_run(config(data, tmp_path)).warnings)


def test_run_above_the_limit_wants_yes(data, tmp_path, capsys):
    settings = config(data, tmp_path, generator={"confirm_above_cost": 0.01})
    path = tmp_path / "config.yaml"
    path.write_text(settings.model_dump_json())
    assert run_app(["run", str(path)]) == 2
    assert "--yes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def price(settings: RunConfig, **left: int):
    steps = tuple((settings, stage) for stage, n in left.items() for _ in range(n))
    return price_work(WorkPlan(1, 0, len(steps), 0, 0, left, (), 0.0, False, steps))


def test_steps_of_one_run_cost_what_the_run_costs(data, tmp_path):
    settings = config(data, tmp_path, rounds=2)
    money = check_run(settings).money
    steps = {
        "data": 1,
        "warmup": 1,
        "control": 1,
        "measure": 4,
        "retrieve": 2,
        "propagate": 2,
        "justify": 2,
        "evolve": 2,
    }
    found = price(settings, **steps)
    assert (found.low, found.high) == pytest.approx((money.low, money.high))
    assert price(settings, adapt=4).high == pytest.approx(2 * price(settings, evolve=2).high)
    unknown = price(config(data, tmp_path, model={"path": "my-model"}), **steps)
    assert "without my-model, training of my-model, whose price" in unknown.line()
    local = config(data, tmp_path, **{k: {"type": "fake"} for k in ("generator", "trainer", "embedder")})
    assert price(local, **steps) is None


def test_each_run_of_a_comparison_is_priced_by_its_own_config(data, tmp_path):
    plain = config(data, tmp_path)
    without = price(config(data, tmp_path, control={"enabled": False}), control=2)
    assert without == price(plain, control=2)
    assert without.low > 0
    voted = price(config(data, tmp_path, measure={"n_samples": 4}), measure=2)
    assert voted.high == pytest.approx(4 * price(plain, measure=2).high)
    large = config(data, tmp_path, model={"path": "gpt-4o"})
    both = price_work(WorkPlan(2, 0, 2, 0, 0, {}, (), 0.0, False, ((plain, "propagate"), (large, "propagate"))))
    alone = [price(settings, propagate=1).high for settings in (plain, large)]
    assert alone[0] < alone[1]
    assert both.high == pytest.approx(sum(alone))


@pytest.mark.parametrize(("command", "swept"), [("compare", []), ("sweep", ["theta=0.3,0.5"])])
def test_comparison_above_the_limit_wants_yes(data, tmp_path, capsys, command, swept):
    path = tmp_path / "config.yaml"
    path.write_text(config(data, tmp_path, generator={"confirm_above_cost": 0.01}).model_dump_json())
    arguments = [command, str(path), *swept, "--arms", "sft,semievol", "--seeds", "2", "-o", str(tmp_path / "c")]
    assert run_app(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "cost: about $" in said
    assert "this comparison may cost $" in said
    assert "--yes" in said
    assert not (tmp_path / "c" / "comparison.json").exists()
    assert run_app([*arguments, "--plan"]) == 0


@pytest.mark.parametrize(("command", "swept"), [("compare", []), ("sweep", ["theta=0.3,0.5"])])
@pytest.mark.parametrize("asked", [["--json"], ["--format", "json"]])
def test_plan_of_a_comparison_is_printed_as_json(data, tmp_path, capsys, command, swept, asked):
    path = tmp_path / "config.yaml"
    path.write_text(config(data, tmp_path).model_dump_json())
    arguments = [command, str(path), *swept, "--arms", "sft,semievol", "--seeds", "2", "-o", str(tmp_path / "c")]
    assert run_app([*arguments, "--plan", *asked]) == 0
    plan = json.loads(capsys.readouterr().out)
    n_settings = 2 if swept else 1
    assert (plan["n_runs"], plan["n_runs_done"], plan["n_steps_done"]) == (4 * n_settings, 0, 0)
    assert plan["n_steps"] - plan["n_steps_shared"] == sum(plan["left"].values())
    assert plan["left"]["warmup"] == 2
    assert set(plan["unmeasured"]) <= set(plan["left"])
    assert 0 < plan["price"]["low"] < plan["price"]["high"]
    assert plan["price"]["without_price"] == []
    assert not (tmp_path / "c" / "comparison.json").exists()


@pytest.mark.parametrize("answer", [[], ["--yes"]])
def test_yes_is_passed_on(data, tmp_path, monkeypatch, answer):
    path, given = tmp_path / "config.yaml", []
    path.write_text(config(data, tmp_path).model_dump_json())

    def compare(*_, confirmed, **__):
        given.append(confirmed)
        raise ConfigError("enough")

    monkeypatch.setattr("semievol.compare_command.compare", compare)
    assert run_app(["compare", str(path), *answer]) == 2
    assert run_app(["sweep", str(path), "theta=0.3,0.5", *answer]) == 2
    assert given == [bool(answer)] * 2


def test_example_on_fpb_is_priced_without_a_network(data, tmp_path):
    overrides = [f"data.{k}={v}" for k, v in data.items()] + [f"output_dir={tmp_path / 'run'}"]
    found = check_run(load_config(ROOT / "examples" / "openai_fpb.yaml", overrides))
    assert found.faults == []
    assert 0 < found.money.low < found.money.high
    assert any("estimated from UTF-8 bytes" in n for n in found.notes)
