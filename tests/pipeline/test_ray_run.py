"""A run over Ray ends with the bytes of the run without, whoever dies on the way."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from semievol.artifacts import RunDir
from semievol.errors import GenerationError
from semievol.pipeline import run
from semievol.predicting import predict_file
from semievol.stage import SilentReporter
from tests.contract.test_ray_generator import replica_pids
from tests.pipeline.conftest import FAKE
from tests.pipeline.test_fake_run import artifacts, results_without_cost, run_and_record
from tests.pipeline.test_kill import ENVIRONMENT, start, write_config
from tests.ray_standin import StandIn

RAY = {"type": "ray", "inner": {"type": "fake"}, "replicas": 2}


@pytest.fixture
def standin(monkeypatch):
    def install(**how) -> StandIn:
        ray = StandIn(**how)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return install


def without_config(found: dict[str, bytes]) -> dict[str, bytes]:
    """The resolved config names the generator."""
    return {name: data for name, data in found.items() if name != "config.resolved.json"}


def rows_of(run_dir: RunDir) -> bytes:
    return json.dumps(
        {k: v for k, v in results_without_cost(run_dir).items() if k != "config"}, sort_keys=True
    ).encode()


@pytest.fixture
def expected(make_config, tmp_path):
    """(artifacts, results, predictions) of the run with the local generator alone, and its folder put away."""
    run_dir = run(make_config())
    found = without_config(artifacts(run_dir)), rows_of(run_dir), predict(run_dir, make_config())
    run_dir.path.rename(tmp_path / "alone")
    return found


def predict(run_dir: RunDir, config) -> bytes:
    output = run_dir.path.parent / "predicted.csv"
    predict_file(run_dir.path, config.data.test, output, abstain_below=None, reporter=SilentReporter())
    return output.read_bytes()


@pytest.mark.parametrize("replicas", [1, 3])
def test_ray_run_equals_the_local_run(make_config, expected, standin, replicas):
    ray = standin(kill_at={2, 11, 30}, seed=replicas)
    config = make_config(generator=RAY | {"shard_rows": 7, "replicas": replicas})
    run_dir = run(config)
    assert ray.n_answers > 60
    assert (without_config(artifacts(run_dir)), rows_of(run_dir), predict(run_dir, config)) == expected
    assert not list(run_dir.path.rglob("answers/*"))


def test_run_that_lost_a_shard_for_good_goes_on_and_ends_with_the_same_bytes(make_config, expected, standin):
    config = make_config(generator=RAY | {"shard_rows": 7, "max_attempts": 2, "replicas": 1})
    standin(kill_at={21, 22})
    with pytest.raises(GenerationError, match="All finished rows are kept"):
        run(config)
    n_kept = len(list(Path(config.output_dir).rglob("answers/*")))
    assert n_kept == 20
    ray = standin()
    run_dir = run(config)
    again = run_dir.manifest()["round-1/propagate"]["stats"]
    assert again["n_rows"] == 80
    assert (without_config(artifacts(run_dir)), rows_of(run_dir), predict(run_dir, config)) == expected
    assert ray.n_answers > 0


def test_run_can_move_to_a_cluster_half_way(make_config, standin):
    run(make_config(), until_stage="justify")
    standin()
    ran = run_and_record(make_config(generator=RAY | {"replicas": 8}))
    assert ran[0] == "round-1/select"
    assert run_and_record(make_config()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_ray_run_of_a_real_model_equals_the_local_run(real_ray, make_config, tmp_path, tiny_llama_dir):
    inner = {"type": "transformers", "threads": 1}
    changes = {
        "model": {"path": tiny_llama_dir, "max_length": 400},
        "trainer": {"type": "trl", "max_steps": 2, "per_device_train_batch_size": 4, "max_length": 400},
    }
    run_dir = run(make_config(generator=inner, **changes))
    expected = without_config(artifacts(run_dir)), rows_of(run_dir)
    run_dir.path.rename(tmp_path / "alone")
    run_dir = run(make_config(generator={"type": "ray", "inner": inner, "replicas": 2}, **changes))
    assert (without_config(artifacts(run_dir)), rows_of(run_dir)) == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the replicas in /proc")
def test_real_ray_run_killed_and_gone_on_with_equals_the_local_run(
    real_ray, expected, tmp_path, task_files, monkeypatch
):
    """The driver dies, and then a worker of the next one: both by SIGKILL."""
    monkeypatch.setitem(ENVIRONMENT, "RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "disabled"))
    ray = RAY | {"address": real_ray.get_runtime_context().gcs_address, "shard_rows": 2}
    config = write_config(tmp_path, task_files, **FAKE | {"generator": ray})
    run_dir = RunDir(tmp_path / "run")

    def answered() -> bool:
        return len(list(run_dir.path.rglob("answers/*.jsonl"))) >= 4

    process = start(config)
    while not answered() and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1].decode()[-3000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    left = replica_pids()
    process = start(config)
    killed = None
    while process.poll() is None:
        if killed is None and answered() and (new := replica_pids() - left):
            killed = min(new)
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.002)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr.decode()[-3000:]
    assert killed is not None
    assert (without_config(artifacts(run_dir)), rows_of(run_dir)) == expected[:2]
