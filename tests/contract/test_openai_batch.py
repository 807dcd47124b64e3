"""What every generator promises, of the one that asks through the Batch API, and that no answer is bought twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace

import pytest

from semievol.backends.base import open_generator
from semievol.backends.openai_batch import OpenAIBatchGenerator
from semievol.backends.openai_batches import BatchRecords
from semievol.config import AzureConfig, ModelConfig, OpenAIBatchGeneratorConfig, OpenAIGeneratorConfig, PricesConfig
from semievol.errors import ConfigError, GenerationError
from semievol.types import Message, ModelRef, Request, Sampling

MODEL = "gpt-4o-mini-2024-07-18"
OTHER = "gpt-4.1-mini-2025-04-14"
CREATE = "POST /v1/batches"
CHAT = "POST /v1/chat/completions"


@pytest.fixture(autouse=True)
def _fresh(emulator, monkeypatch, tmp_path):
    emulator.reset()
    monkeypatch.setenv("OPENAI_API_KEY", emulator.api_key)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-of-user"))


@pytest.fixture
def state(emulator, tmp_path):
    """A state folder in which it is written what the server can do, so that no probe is among what is paid."""
    with opened(emulator, tmp_path / "hosted"):
        emulator.reset()
    return tmp_path / "hosted"


def settings(emulator, **changes) -> OpenAIBatchGeneratorConfig:
    return OpenAIBatchGeneratorConfig(**{"base_url": emulator.base_url, "poll_seconds": 0.01, **changes})


def opened(emulator, state_dir=None, **changes) -> OpenAIBatchGenerator:
    model = ModelConfig(path=MODEL)
    return OpenAIBatchGenerator(
        settings(emulator, **changes), model, state_dir=state_dir, sleep=lambda s: time.sleep(s / 50)
    )


def requests(n: int = 7, model: str = MODEL) -> list[Request]:
    options = "Options:\nA. lost\nB. late\nC. broken"
    return [
        Request(f"r{i}", (Message("user", f"{options}\n\nwhere is parcel {i}? #{'ABC'[i % 3]}"),), ModelRef(model), i)
        for i in range(n)
    ]


def run(generator, reqs, **sampling):
    return {r.id: r for r in generator.generate(reqs, Sampling(**sampling))}


def expected(emulator, reqs, **sampling):
    """What the same requests bring one by one."""
    config = OpenAIGeneratorConfig(base_url=emulator.base_url)
    with open_generator(config, ModelConfig(path=MODEL)) as generator:
        found = run(generator, reqs, **sampling)
    emulator.reset()
    return found


def n_batches(emulator) -> int:
    return emulator.counters()["requests"].get(CREATE, 0)


def lines_sent(emulator) -> list[list[dict]]:
    """Lines of every input file, oldest first, as the server has them."""
    files = json.loads(download(emulator, "files?purpose=batch"))["data"][::-1]
    return [[json.loads(x) for x in download(emulator, f"files/{f['id']}/content").splitlines()] for f in files]


def download(emulator, route: str) -> bytes:
    headers = {"authorization": f"Bearer {emulator.api_key}"}
    with urllib.request.urlopen(urllib.request.Request(f"{emulator.base_url}/{route}", headers=headers)) as response:
        content: bytes = response.read()
    return content


def n_asked(emulator) -> int:
    return sum(len(lines) for lines in lines_sent(emulator))


# The contract


def test_generate_gives_what_single_requests_give(emulator, tmp_path):
    reqs = requests()
    wanted = expected(emulator, reqs, n=3)
    with opened(emulator, tmp_path) as generator:
        assert run(generator, reqs, n=3) == wanted
    assert n_batches(emulator) == 1


def test_generate_same_seed_same_result_in_any_order_and_subset(emulator, tmp_path):
    reqs = requests()
    with opened(emulator, tmp_path) as generator:
        whole = run(generator, reqs, n=2)
        assert run(generator, reversed(reqs), n=2) == whole
        assert run(generator, reqs[2:4], n=2) == {k: whole[k] for k in ("r2", "r3")}


def test_generate_takes_an_empty_stream_and_returns_at_a_pause(emulator, tmp_path):
    with opened(emulator, tmp_path) as generator:
        assert list(generator.generate(iter(()), Sampling())) == []
        feed = iter([*requests(2), None, *requests(3)[2:], None, None])
        assert sorted(r.id for r in generator.generate(feed, Sampling())) == ["r0", "r1", "r2"]
    assert n_batches(emulator) == 2


def test_generate_sends_one_model_a_batch_and_windows_one_after_the_other(emulator, tmp_path):
    both = [replace(r, id=f"{r.id}/{m}") for m in (MODEL, OTHER) for r in requests(4, m)]
    with opened(emulator, tmp_path) as generator:
        assert len(run(generator, both)) == 8
    assert [{line["body"]["model"] for line in file} for file in lines_sent(emulator)] == [{MODEL}, {OTHER}]
    with opened(emulator, tmp_path, window=3) as generator:
        assert len(run(generator, requests(7))) == 7
    assert [len(file) for file in lines_sent(emulator)][2:] == [3, 3, 1]


def test_generate_splits_at_the_limits_of_the_api(emulator, tmp_path):
    with opened(emulator, tmp_path, max_requests_per_batch=3) as generator:
        assert len(run(generator, requests(7))) == 7
    assert [len(file) for file in lines_sent(emulator)] == [3, 3, 1]
    emulator.reset()
    with opened(emulator, tmp_path, max_file_bytes=900) as generator:
        assert len(run(generator, requests(7))) == 7
    sizes = [sum(len(json.dumps(line)) + 1 for line in file) for file in lines_sent(emulator)]
    assert len(sizes) > 1
    assert all(size <= 900 for size in sizes)


def test_generate_equal_requests_are_one_line(emulator, tmp_path):
    same = [replace(r, id=name) for name in ("a", "b") for r in requests(1)]
    with opened(emulator, tmp_path) as generator:
        found = run(generator, same)
    assert found["a"].completions == found["b"].completions
    assert n_asked(emulator) == 1


def test_generate_samples_of_a_server_without_n_and_seed_are_drawn_each_on_its_own(emulator, tmp_path):
    emulator.set_faults(ignore_n=True)
    with opened(emulator, tmp_path) as generator:
        generator._abilities = generator.abilities._replace(seed=False)
        found = run(generator, requests(2), n=3)
    assert [len(r.completions) for r in found.values()] == [3, 3]
    assert n_asked(emulator) == 6


def test_usage_counts_lines_as_requests_at_half_the_price(emulator, tmp_path):
    with opened(emulator, tmp_path, prices=PricesConfig(input=10, output=40)) as generator:
        before = generator.usage
        results = run(generator, requests(5), n=2)
        used = generator.usage
    assert used.requests - before.requests == 5
    n_prompt = used.prompt_tokens - before.prompt_tokens
    n_completion = used.completion_tokens - before.completion_tokens
    assert n_completion == sum(r.n_completion_tokens for r in results.values())
    assert used.dollars - before.dollars == pytest.approx(0.5 * (10 * n_prompt + 40 * n_completion) / 1e6)


def test_adapter_folder_is_refused_by_name(emulator, tmp_path):
    request = replace(requests(1)[0], model=ModelRef(MODEL, "warmup/adapter"))
    with opened(emulator, tmp_path) as generator, pytest.raises(ConfigError, match="warmup/adapter"):
        list(generator.generate([request], Sampling()))


def test_azure_takes_batches_under_its_own_addresses(emulator, tmp_path):
    with opened(emulator, tmp_path, base_url=None, azure=AzureConfig(endpoint=emulator.origin)) as generator:
        assert all(r.error is None for r in run(generator, requests(3)).values())
    assert {line["url"] for file in lines_sent(emulator) for line in file} == {"/chat/completions"}


# What goes wrong on the way


@pytest.mark.parametrize("kind", ["batch_line_error", "batch_missing", "batch_duplicate"])
def test_lines_that_go_wrong_are_sent_again_alone(emulator, tmp_path, kind):
    reqs = requests(20)
    wanted = expected(emulator, reqs)
    emulator.set_faults(**{kind: {"times": 4, "skip": 3}})
    with opened(emulator, tmp_path) as generator:
        assert run(generator, reqs) == wanted
    assert n_asked(emulator) == (20 if kind == "batch_duplicate" else 24)


def test_expired_batch_gives_what_it_has_and_the_rest_is_sent_again(emulator, state):
    reqs = requests(20)
    wanted = expected(emulator, reqs)
    emulator.set_faults(batch_expired=1)
    with opened(emulator, state) as generator:
        assert run(generator, reqs) == wanted
    assert [len(file) for file in lines_sent(emulator)] == [20, 10]
    assert emulator.bought_twice() == []


def test_batch_that_fails_as_a_whole_is_sent_again(emulator, tmp_path):
    emulator.set_faults(batch_failed=2)
    with opened(emulator, tmp_path) as generator:
        assert all(r.error is None for r in run(generator, requests()).values())
    assert n_batches(emulator) == 3


def test_rows_of_a_batch_that_always_fails_become_failures_in_its_words(emulator, tmp_path):
    emulator.set_faults(batch_failed=True)
    with opened(emulator, tmp_path, max_attempts=2) as generator:
        results = run(generator, requests(3))
    assert all(
        "token_limit_exceeded: Enqueued token limit reached. (given up after 2" in r.error for r in results.values()
    )
    assert n_batches(emulator) == 2


def test_refused_line_is_a_recorded_failure_at_once(emulator, tmp_path):
    long = Request("long", (Message("user", "word " * 130_000),), ModelRef(MODEL))
    with opened(emulator, tmp_path) as generator:
        results = run(generator, [long, *requests(1)])
    assert "400 context_length_exceeded" in results["long"].error
    assert results["r0"].error is None
    assert n_batches(emulator) == 1


def test_line_held_back_by_the_content_filter_is_a_recorded_failure(emulator, tmp_path):
    with opened(emulator, tmp_path) as generator:
        emulator.set_faults(content_filter=1)
        results = run(generator, requests(3))
    assert sorted(r.error is None for r in results.values()) == [False, True, True]
    assert n_batches(emulator) == 1


@pytest.mark.parametrize("fault", ["drop_after", "drop_before", "server_error", "rate_limit"])
def test_batch_is_created_once_where_the_answer_is_lost(emulator, state, fault):
    emulator.set_faults(**{fault: {"times": 2, "route": CREATE}})
    with opened(emulator, state) as generator:
        assert len(run(generator, requests())) == 7
    assert emulator.bought_twice() == []


@pytest.mark.parametrize("route", ["GET /v1/batches/{id}", "GET /v1/files/{id}/content"])
@pytest.mark.parametrize("fault", ["server_error", "truncate"])
def test_results_survive_broken_downloads(emulator, tmp_path, route, fault):
    emulator.set_faults(**{fault: {"times": 1, "route": route}})
    with opened(emulator, tmp_path) as generator:
        assert all(r.error is None for r in run(generator, requests()).values())
    assert n_asked(emulator) == 7


# Going on


def test_stuck_batch_hits_the_deadline_and_a_new_process_waits_for_it(emulator, tmp_path):
    emulator.set_faults(batch_stuck=1)
    for _ in range(2):
        with (
            opened(emulator, tmp_path, deadline_hours=0.0001) as generator,
            pytest.raises(
                GenerationError, match=r"batch_\w+.*run again.*generator.deadline_hours.*semievol cancel RUN"
            ),
        ):
            run(generator, requests())
    assert n_batches(emulator) == 1
    assert len(BatchRecords(tmp_path).read()) == 1


def test_batch_cancelled_elsewhere_stops_and_the_next_run_sends_the_rest(emulator, tmp_path):
    from openai import OpenAI

    emulator.set_faults(batch_stuck=1)
    client = OpenAI(base_url=emulator.base_url, api_key=emulator.api_key)

    def cancel() -> None:
        while not (batches := client.batches.list().data):
            time.sleep(0.01)
        client.batches.cancel(batches[0].id)

    thread = threading.Thread(target=cancel)
    thread.start()
    with opened(emulator, tmp_path) as generator, pytest.raises(GenerationError, match="were cancelled: batch_"):
        run(generator, requests())
    thread.join()
    with opened(emulator, tmp_path) as generator:
        assert all(r.error is None for r in run(generator, requests()).values())
    assert n_batches(emulator) == 2


def test_answers_taken_leave_no_record_behind(emulator, tmp_path):
    with opened(emulator, tmp_path) as generator:
        run(generator, requests())
    assert BatchRecords(tmp_path).read() == []


def test_answers_given_up_half_way_are_read_again_and_not_bought_again(emulator, state):
    with opened(emulator, state) as generator:
        taken = generator.generate(requests(), Sampling())
        first = next(taken)
        taken.close()
    rest = [r for r in requests() if r.id != first.id]
    with opened(emulator, state) as generator:
        assert sorted([first.id, *run(generator, rest)]) == [f"r{i}" for i in range(7)]
    assert n_batches(emulator) == 1
    assert emulator.bought_twice() == []


CHILD = """
import json, sys
from pathlib import Path
from semievol.backends.openai_batch import OpenAIBatchGenerator
from semievol.config import ModelConfig, OpenAIBatchGeneratorConfig
from semievol.types import Message, ModelRef, Request, Sampling
job = json.loads(sys.argv[1])
requests = [Request(i, (Message("user", text),), ModelRef(model), seed) for i, text, model, seed in job["requests"]]
config = OpenAIBatchGeneratorConfig(**job["config"])
with OpenAIBatchGenerator(config, ModelConfig(path=job["model"]), state_dir=Path(job["state"])) as generator:
    list(generator.generate(requests, Sampling()))
"""


@pytest.mark.parametrize("route", [CREATE, "GET /v1/batches/{id}"])
def test_killed_process_buys_nothing_twice(emulator, state, route):
    """Killed while the server makes the batch, so that its id is known to nobody, or while it is waited for."""
    job = {
        "model": MODEL,
        "state": str(state),
        "requests": [(r.id, r.messages[0].content, r.model.base, r.seed) for r in requests()],
        "config": settings(emulator).model_dump(mode="json"),
    }
    emulator.set_faults(slow={"times": 1, "route": route}, slow_seconds=0.4)
    child = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(job)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < end and not emulator.counters()["requests"].get(route):
        time.sleep(0.002)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    time.sleep(0.5)
    with opened(emulator, state) as generator:
        assert len(run(generator, requests())) == 7
    assert n_batches(emulator) == 1
    assert emulator.bought_twice() == []


def test_records_lie_in_the_users_folder_where_there_is_no_run(emulator, tmp_path):
    emulator.set_faults(batch_stuck=1)
    with opened(emulator, deadline_hours=0.0001) as generator, pytest.raises(GenerationError):
        run(generator, requests())
    assert len(list((tmp_path / "state-of-user" / "semievol" / "batches").glob("*.json"))) == 1


# Limits


def take_all(generator, reqs, found: list[str]) -> None:
    """Note the id of each result as it comes."""
    for result in generator.generate(reqs, Sampling()):
        found.append(result.id)


def test_max_requests_sends_what_fits_and_then_stops(emulator, tmp_path):
    found: list[str] = []
    with (
        opened(emulator, tmp_path, max_requests=8) as generator,
        pytest.raises(GenerationError, match="max_requests: 8"),
    ):
        take_all(generator, requests(), found)
    n_probes = emulator.counters()["requests"][CHAT]
    assert len(found) == n_asked(emulator) == 8 - n_probes


def test_max_cost_is_never_passed(emulator, tmp_path):
    found: list[str] = []
    prices = PricesConfig(input=10.0, output=10.0)
    with opened(emulator, tmp_path, max_cost=0.005, prices=prices) as generator:
        with pytest.raises(GenerationError, match="max_cost"):
            take_all(generator, requests(60), found)
        assert 0.002 < generator.usage.dollars <= 0.005
    assert 5 < len(found) < 60
