"""What `generator: ray` adds to the contract: equal bytes whoever does the work, deaths, resume, clear errors.

The default run has a stand-in for Ray in this process; the tests marked slow have Ray itself, and kill its workers.
"""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from semievol.backends.base import open_generator
from semievol.config import FakeGeneratorConfig, ModelConfig, RayGeneratorConfig, TransformersGeneratorConfig
from semievol.errors import ArtifactError, ConfigError, GenerationError
from semievol.types import ChoiceRequest, ModelRef, Sampling
from tests.contract.test_generator_contract import requests
from tests.ray_standin import StandIn

FAKE = {"type": "fake"}
FAKE_MODEL = ModelConfig(path="fake-model")
SAMPLING = Sampling(n=2, max_tokens=6)


def ray_config(inner=FAKE, **settings) -> RayGeneratorConfig:
    return RayGeneratorConfig.model_validate({"inner": inner, "replicas": 2, "shard_rows": 4} | settings)


@pytest.fixture
def standin(monkeypatch):
    def install(**how) -> StandIn:
        ray = StandIn(**how)
        monkeypatch.setitem(__import__("sys").modules, "ray", ray)
        return ray

    return install


def fake_requests(n=40):
    return requests(ModelRef("fake-model"), n)


def in_shards(config, model, reqs, size, sampling=SAMPLING):
    """The local generator alone, asked shard by shard."""
    with open_generator(config, model) as generator:
        return [r for at in range(0, len(reqs), size) for r in generator.generate(reqs[at : at + size], sampling)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_answers_are_those_of_the_inner_generator_whoever_gives_them(standin, tiny_llama_dir, replicas, seed):
    standin(seed=seed)
    inner, model = TransformersGeneratorConfig(), ModelConfig(path=tiny_llama_dir, device="cpu")
    reqs = requests(ModelRef(tiny_llama_dir), 10)
    with open_generator(ray_config({"type": "transformers"}, replicas=replicas), model) as generator:
        assert list(generator.generate(reqs, SAMPLING)) == in_shards(inner, model, reqs, 4)


def test_calls_overlap_and_are_taken_in_their_order(standin):
    ray = standin()
    reqs = fake_requests(24)
    scored = [ChoiceRequest(f"c{r.id}", r.messages, r.model, ("Answer: A", "Answer: B")) for r in reqs]
    with open_generator(ray_config(), FAKE_MODEL) as generator:
        first, second = generator.generate(reqs, SAMPLING), generator.score_choices(scored)
        assert ray.n_answers == 0
        assert [r.id for r in first] == [r.id for r in reqs]
        assert ray.n_answers > 6  # shards of the second call went out before the first one was over
        assert [s.id for s in second] == [s.id for s in scored]
    with open_generator(FakeGeneratorConfig(), FAKE_MODEL) as generator:
        assert list(generator.score_choices(scored)) != []


@pytest.mark.parametrize("lost_at", [{1}, {3, 4, 9}, {2, 5, 8, 10, 12}])
@pytest.mark.parametrize("how", ["kill_at", "hang_at"])
def test_lost_replicas_change_no_answer_and_cost_a_shard_each(standin, how, lost_at):
    ray = standin(**{how: lost_at})
    reqs = fake_requests()
    with open_generator(ray_config(max_attempts=6, shard_timeout_seconds=0.2), FAKE_MODEL) as generator:
        assert list(generator.generate(reqs, SAMPLING)) == in_shards(FakeGeneratorConfig(), FAKE_MODEL, reqs, 4)
    assert ray.n_answers == 10 + len(lost_at)
    assert len(ray.actors) == 2 + len(lost_at)


def test_shard_that_hangs_every_replica_ends_the_run(standin):
    standin(hang_at={1, 2})
    config = ray_config(replicas=1, max_attempts=2, shard_timeout_seconds=0.1)
    with (
        pytest.raises(GenerationError, match=r"ended 2 replicas .*not answered after generator\.shard_timeout_seconds"),
        open_generator(config, FAKE_MODEL) as generator,
    ):
        list(generator.generate(fake_requests(4), SAMPLING))


def test_shard_that_kills_every_replica_ends_the_run_and_keeps_what_is_done(standin, tmp_path):
    reqs = fake_requests(16)
    config = ray_config(replicas=1, max_attempts=2)
    ray = standin(kill_at={3, 4})
    with (
        pytest.raises(GenerationError, match=r"from r8 to r11 ended 2 replicas .*run again to go on"),
        open_generator(config, FAKE_MODEL, state_dir=tmp_path) as generator,
    ):
        list(generator.generate(reqs, SAMPLING))
    assert ray.n_answers == 4
    ray = standin()
    with open_generator(config, FAKE_MODEL, state_dir=tmp_path) as generator:
        assert list(generator.generate(reqs, SAMPLING)) == in_shards(FakeGeneratorConfig(), FAKE_MODEL, reqs, 4)
    assert ray.n_answers == 2  # two shards were done before
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_answers_of_another_model_are_not_taken_up(standin, tmp_path, make_adapter, tiny_llama_dir):
    """A model that was trained anew lies in the same folder."""
    import shutil

    standin()
    adapter = tmp_path / "adapter"
    model, config = ModelConfig(path=tiny_llama_dir, device="cpu"), ray_config({"type": "transformers"})
    reqs = [replace(r, model=ModelRef(tiny_llama_dir, str(adapter))) for r in requests(ModelRef(tiny_llama_dir), 4)]
    found = []
    for seed in (1, 2):
        shutil.rmtree(adapter, ignore_errors=True)
        shutil.copytree(make_adapter(tiny_llama_dir, seed), adapter)
        generator = open_generator(config, model, state_dir=tmp_path / "state")
        found.append(list(generator.generate(reqs, SAMPLING)))  # and is killed before it tidies up
    assert found[0] != found[1]
    assert found[1] == in_shards(TransformersGeneratorConfig(), model, reqs, 4)


def test_replicas_take_what_the_config_allows(standin):
    ray = standin()
    with open_generator(ray_config(replicas=3, gpus_per_replica=0.5, cpus_per_replica=2), FAKE_MODEL):
        assert len(ray.actors) == 3
    assert ray.options[0]["num_cpus"] == 2
    assert ray.options[0]["num_gpus"] == 0.5
    assert ray.options[0]["max_restarts"] == 0


def test_equal_requests_under_way_twice_are_answered_twice(standin):
    ray = standin()
    reqs = fake_requests(8)
    with open_generator(ray_config(), FAKE_MODEL) as generator:
        calls = [generator.generate(reqs, SAMPLING) for _ in range(3)]
        answers = [list(call) for call in calls]
        assert answers[0] == answers[1] == answers[2]
        assert list(generator.generate(reqs, SAMPLING)) == answers[0]
    assert ray.n_answers == 2


def test_trained_model_that_a_node_does_not_see_is_named(standin, tiny_llama_dir, make_adapter, monkeypatch):
    standin()
    adapter = make_adapter(tiny_llama_dir)
    reqs = requests(ModelRef(tiny_llama_dir, adapter), 4)
    model = ModelConfig(path=tiny_llama_dir, device="cpu")
    is_dir = Path.is_dir
    with open_generator(ray_config({"type": "transformers"}), model) as generator:
        answers = generator.generate(reqs, SAMPLING)
        monkeypatch.setattr(Path, "is_dir", lambda path: str(path) != adapter and is_dir(path))
        with pytest.raises(ConfigError, match=rf"does not see the model folder {adapter}.*storage that all nodes"):
            list(answers)


def test_trained_model_that_differs_on_a_node_is_refused(standin, tiny_llama_dir, make_adapter):
    standin()
    adapter = Path(make_adapter(tiny_llama_dir))
    with open_generator(
        ray_config({"type": "transformers"}), ModelConfig(path=tiny_llama_dir, device="cpu")
    ) as generator:
        answers = generator.generate(requests(ModelRef(tiny_llama_dir, str(adapter)), 4), SAMPLING)
        (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
        with pytest.raises(ConfigError, match=f"another model in {adapter}"):
            list(answers)


def test_faults_of_the_inner_generator_come_back_as_they_are(standin):
    standin()
    with pytest.raises(ConfigError, match=r"model\.path: .*/nowhere/model"):
        open_generator(ray_config({"type": "transformers"}), ModelConfig(path="/nowhere/model"))


def test_damaged_answers_are_named(standin, tmp_path):
    standin()
    with open_generator(ray_config(storage=str(tmp_path)), FAKE_MODEL) as generator:
        answers = generator.generate(fake_requests(4), SAMPLING)
        generator._pool.wait_for(*{p.stem for p in tmp_path.rglob("shards/*.jsonl")})
        (file,) = tmp_path.rglob("answers/*.jsonl")
        file.write_bytes(file.read_bytes()[:-20])
        generator._done.add(file.stem)
        with pytest.raises(GenerationError, match=f"{file} is damaged; delete it"):
            list(answers)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'semievol\[ray\]'"):
        open_generator(ray_config(), FAKE_MODEL)


def test_storage_without_its_package_is_refused(standin):
    standin()
    with pytest.raises(ConfigError, match=r"generator\.storage: nosuch://bucket"):
        open_generator(ray_config(storage="nosuch://bucket"), FAKE_MODEL)


def test_storage_that_cannot_be_written_is_named(standin, tmp_path):
    standin()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ArtifactError, match=rf"generator\.storage: {tmp_path}/file/.* cannot be written"):
        open_generator(ray_config(storage=str(tmp_path / "file")), FAKE_MODEL)


def test_cluster_needs_storage_where_there_is_no_run_folder(standin):
    standin()
    with pytest.raises(ConfigError, match=r"generator\.storage: set a folder or URL"):
        open_generator(ray_config(address="auto"), FAKE_MODEL)


def test_address_without_a_cluster_is_refused_at_once():
    pytest.importorskip("ray")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"generator\.address: 127\.0\.0\.1:9 cannot be reached"):
        open_generator(ray_config(address="127.0.0.1:9", storage="/tmp"), FAKE_MODEL)
    assert time.monotonic() - start < 60


# Ray itself


def replica_pids() -> set[int]:
    """Processes of replicas; Ray names them by the method they run."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if (folder / "cmdline").read_bytes().startswith(b"ray::Replica"):
                    found.add(int(folder.name))
            except OSError:  # it has just ended
                continue
    return found


def kill_one_after(n_shards: int, storage: Path, killed: list[int]) -> None:
    """Kill a replica as soon as so many shards are answered."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if len(list(storage.rglob("answers/*.jsonl"))) >= n_shards and (pids := replica_pids()):
            killed.append(min(pids))
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the replicas in /proc")
def test_real_ray_with_a_killed_worker_gives_the_same_answers(real_ray, tmp_path, caplog):
    caplog.set_level("INFO", logger="semievol.hosted")
    reqs = fake_requests(400)
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_after, args=(3, tmp_path, killed))
    with open_generator(ray_config(shard_rows=1, storage=tmp_path.as_uri()), FAKE_MODEL) as generator:
        killer.start()
        found = list(generator.generate(reqs, SAMPLING))
        killer.join()
        after = list(generator.generate(reqs[:8], SAMPLING))  # with the replica that took the dead one's place
    assert killed
    assert sum("is gone, another one gets the shard" in r.getMessage() for r in caplog.records) == 1
    expected = in_shards(FakeGeneratorConfig(), FAKE_MODEL, reqs, 1)
    assert found == expected
    assert after == expected[:8]
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_ray_that_has_no_room_says_what_there_is(real_ray):
    config = ray_config(cpus_per_replica=64, start_timeout_seconds=3)
    with pytest.raises(ConfigError, match=r"no replica was ready .*'CPU': 2"):
        open_generator(config, FAKE_MODEL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_ray_is_reached_by_its_address_from_another_process(real_ray, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from semievol.backends.base import open_generator\n"
        "from tests.contract.test_ray_generator import *\n"
        f"config = ray_config(address={real_ray.get_runtime_context().gcs_address!r}, storage={str(tmp_path)!r})\n"
        "with open_generator(config, FAKE_MODEL) as generator:\n"
        "    found = list(generator.generate(fake_requests(), SAMPLING))\n"
        "assert found == in_shards(FakeGeneratorConfig(), FAKE_MODEL, fake_requests(), 4)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
