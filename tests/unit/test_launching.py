"""What starts a training in several processes: commands, threads, errors in the workers' words, no process left."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from semievol.backends.launching import command, environment, launch_faults, run_workers
from semievol.config import LaunchConfig, ModelConfig, RunConfig, TrlTrainerConfig, parse_config
from semievol.costs import ModelSize, estimate_memory
from semievol.errors import ConfigError, DiskFullError, TrainingError

CPU = "cpu"


def make_launch(**changes) -> LaunchConfig:
    return LaunchConfig(**{"num_processes": 2, **changes})


def make_run(**launch) -> RunConfig:
    data = {"labeled": "labeled.csv", "unlabeled": "unlabeled.csv"}
    return parse_config({"data": data, "model": {"device": "cpu"}, "trainer": {"launch": launch}})


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"launch": {}}, "trainer.launch.num_processes is missing"),
        ({"launch": {"num_processes": 6, "num_machines": 4}}, "6 cannot be shared out over 4 machines"),
        ({"launch": {"num_processes": 1, "strategy": "fsdp"}}, "num_processes is 1; use ddp"),
        ({"launch": {"num_processes": 2, "main_process_port": 29500}}, "main_process_port is for several machines"),
        ({"method": "qlora", "launch": {"num_processes": 2, "strategy": "fsdp"}}, "does not cut 4-bit weights"),
        ({"launch": {"num_processes": 2, "strategy": "deepspeed"}}, "'ddp' or 'fsdp'"),
        ({"launch": {"num_processes": 2, "num_machine": 1}}, "did you mean num_machines"),
    ],
)
def test_impossible_settings_are_refused_with_the_remedy(trainer, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"data": {"labeled": "a.csv", "unlabeled": "b.csv"}, "trainer": trainer})


def test_shares_need_a_gpu():
    config = TrlTrainerConfig(launch=make_launch(strategy="fsdp"))
    assert launch_faults(config, ModelConfig(device="cpu"), CPU) == [
        "trainer.launch.strategy: fsdp needs CUDA GPUs, but the device is cpu; use ddp"
    ]


def test_more_processes_than_gpus_are_a_fault(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = TrlTrainerConfig(launch=make_launch(num_processes=8))
    (fault,) = launch_faults(config, ModelConfig(), "cuda")
    assert "8 processes on a machine need a GPU each, but torch sees 4; set 4" in fault
    assert launch_faults(TrlTrainerConfig(launch=make_launch(num_processes=4)), ModelConfig(), "cuda") == []


def test_one_chosen_gpu_and_several_processes_are_a_fault(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    model = ModelConfig(device="cuda:1")
    (fault,) = launch_faults(TrlTrainerConfig(launch=make_launch()), model, "cuda")
    assert "CUDA_VISIBLE_DEVICES" in fault


def test_a_launcher_that_is_not_there_is_a_fault():
    launch = make_launch(num_machines=2, launcher=("no-such-srun",))
    (fault,) = launch_faults(TrlTrainerConfig(launch=launch), ModelConfig(device="cpu"), CPU)
    assert "no-such-srun is not on this machine" in fault


def test_one_process_needs_nothing():
    config = TrlTrainerConfig(launch=LaunchConfig(num_processes=1))
    assert launch_faults(config, ModelConfig(device="cuda:1"), "cuda") == []
    assert config.num_processes == 1


def test_the_command_for_one_machine_needs_no_meeting_place():
    words = command(Path("launch.json"), make_launch(num_processes=8), rendezvous_id="abc")
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--standalone", "--nproc-per-node=8"} <= set(words)
    assert words[-2:] == ["semievol.backends.sft_worker", "launch.json"]


def test_the_command_for_several_machines_is_started_by_srun():
    launch = make_launch(num_processes=16, num_machines=2, main_process_ip="node1", main_process_port=29500)
    words = command(Path("launch.json"), launch, rendezvous_id="abc")
    assert words[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=node1:29500", "--rdzv-id=abc"} <= set(words)


def test_threads_are_shared_out(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    assert environment(make_launch(num_processes=8, num_machines=2))["OMP_NUM_THREADS"] == "3"
    assert environment(make_launch(num_processes=64))["OMP_NUM_THREADS"] == "1"
    assert environment(make_launch(num_cpu_threads_per_process=5))["OMP_NUM_THREADS"] == "5"


def test_rows_a_step_count_all_processes():
    config = TrlTrainerConfig(per_device_train_batch_size=2, gradient_accumulation_steps=3, launch=make_launch())
    assert config.rows_a_step == 12


def test_processes_of_one_cpu_machine_share_its_memory():
    size = ModelSize("Llama", 10**9, 10**7, 16, 2048, 1024, 32_000)
    two = estimate_memory(make_run(num_processes=2), size, 512).training
    apart = estimate_memory(make_run(num_processes=2, num_machines=2), size, 512).training
    one = estimate_memory(make_run(num_processes=1), size, 512).training
    assert two == pytest.approx(2 * one)
    assert apart == one


def test_a_stage_depends_on_how_many_share_and_not_on_where_they_are():
    def lasting(**launch):
        config = make_run(**launch)
        return config.trainer.lasting()

    several = lasting(num_processes=8, num_machines=2, main_process_ip="a", main_process_port=1, launcher=["srun"])
    assert lasting(num_processes=8) == several
    assert lasting(num_processes=4) != lasting(num_processes=8) != lasting(num_processes=8, strategy="fsdp")


def run_script(folder: Path, script: str, progress=None) -> None:
    """Run a shell script in the place of torchrun: a launcher is given torchrun's command and need not use it."""
    (folder / "launch.json").write_text("{}")
    launch = make_launch(num_machines=2, launcher=("bash", "-c", script, str(folder)))
    run_workers(folder / "launch.json", launch, rendezvous_id="abc", progress=progress)


def test_steps_are_told_and_all_other_output_is_kept(tmp_path):
    counts: list[int] = []
    run_script(tmp_path, "echo semievol-step 4; echo a warning >&2; echo semievol-step 1", counts.append)
    assert counts == [4, 1]
    assert (tmp_path / "launch.log").read_text() == "a warning\n"


def failure(rank: int, kind: str, message: str, seconds: float) -> str:
    return json.dumps({"kind": kind, "message": message, "rank": rank, "seconds": seconds})


def test_the_words_of_a_worker_come_first(tmp_path):
    later = failure(1, "TrainingError", "the loss is nan at optimiser step 3", 2.0)
    first = failure(0, "RuntimeError", "Connection closed by peer", 1.0)
    script = f"echo '{later}' > $0/failure-1.json; echo '{first}' > $0/failure-0.json; echo 'exitcode  : -9'; exit 1"
    with pytest.raises(TrainingError, match=r"^the loss is nan at optimiser step 3$"):
        run_script(tmp_path, script)


def test_a_config_error_of_a_worker_stays_one(tmp_path):
    words = failure(1, "ConfigError", "trainer: no such modules", 2.0)
    with pytest.raises(ConfigError, match=r"^trainer: no such modules$"):
        run_script(tmp_path, f"echo '{words}' > $0/failure-1.json; exit 1")


def test_a_full_disk_stays_one_with_words_of_a_worker_and_without(tmp_path, monkeypatch):
    words = failure(0, "DiskFullError", "no space left on the disk of out", 2.0)
    with pytest.raises(DiskFullError, match=r"^no space left on the disk of out$"):
        run_script(tmp_path, f"echo '{words}' > $0/failure-0.json; exit 1")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(DiskFullError, match=f"^no space left on the disk of {tmp_path}: free some and run again"):
        run_script(tmp_path, "exit 1")


def test_a_signal_is_named_before_what_followed_from_it(tmp_path):
    first = failure(0, "RuntimeError", "Connection closed by peer", 1.0)
    script = f"echo '{first}' > $0/failure-0.json; echo '  exitcode  : -15 (pid: 1)  exitcode  : -9 (pid: 2)'; exit 1"
    with pytest.raises(TrainingError, match=r"killed by SIGKILL, as the system does when memory runs out.*launch\.log"):
        run_script(tmp_path, script)


def test_any_other_error_is_told_with_its_process(tmp_path):
    words = failure(1, "KeyError", "weights", 1.0)
    with pytest.raises(TrainingError, match=r"process 1 of 2 failed: KeyError: weights. The next run goes on"):
        run_script(tmp_path, f"echo '{words}' > $0/failure-1.json; exit 1")


def test_processes_that_never_started_are_told_with_the_last_line(tmp_path):
    with pytest.raises(TrainingError, match=r"could not be started \(exit 3\): srun: no such partition"):
        run_script(tmp_path, "echo 'srun: no such partition'; exit 3")


def test_failures_of_an_earlier_run_are_forgotten(tmp_path):
    (tmp_path / "failure-0.json").write_text(failure(0, "ConfigError", "old", 1.0))
    run_script(tmp_path, "exit 0")
    assert not (tmp_path / "failure-0.json").exists()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Crashed(Exception):
    """Raised by a progress callback."""


def test_a_crash_of_the_parent_ends_the_processes(tmp_path):
    def crash(_: int) -> None:
        raise Crashed

    with pytest.raises(Crashed):
        run_script(tmp_path, "echo $$ > $0/pid; echo semievol-step 1; exec cat", crash)  # cat ends with its input
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_ctrl_c_asks_the_workers_to_stop_and_waits_for_them(tmp_path):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_script(tmp_path, "echo semievol-step 1; read word; sleep 0.2; echo $word > $0/said", interrupt)
    assert (tmp_path / "said").read_text() == "stop\n"


WATCHED = """
import os, sys, threading, time
from pathlib import Path
from semievol.backends.sft_worker import _watch_parent
threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
try:
    Path(sys.argv[1], "started").touch()
    time.sleep(100)
except KeyboardInterrupt:
    Path(sys.argv[1], "stopped").touch()
time.sleep(100)
"""


def wait_for(path: Path) -> None:
    end = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_worker_stops_when_asked_and_ends_with_its_input(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WATCHED, str(tmp_path)], stdin=subprocess.PIPE)
    wait_for(tmp_path / "started")
    process.stdin.write(b"stop\n")
    process.stdin.flush()
    wait_for(tmp_path / "stopped")
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(30) == 1
