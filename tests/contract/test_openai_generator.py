"""What every generator promises, of the one that asks a server, over a real socket."""

import json
import os
import signal
import threading
import time
import traceback
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from semievol.backends import openai_calls
from semievol.backends.base import open_generator
from semievol.config import AzureConfig, ModelConfig, OpenAIGeneratorConfig, PricesConfig
from semievol.errors import ConfigError, GenerationError
from semievol.types import ChoiceRequest, Message, ModelRef, Request, Sampling

MODEL = "gpt-4o-mini"
NOTHING_LOST = ("rate_limit", "server_error", "drop_before", "slow")
PAID_AND_LOST = ("drop_after", "truncate")


@pytest.fixture(autouse=True)
def fresh(emulator, monkeypatch):
    monkeypatch.setenv("EMULATOR_KEY", emulator.api_key)
    emulator.reset()


def settings(emulator, **changes) -> OpenAIGeneratorConfig:
    values = {"base_url": emulator.base_url, "api_key_env": "EMULATOR_KEY", "max_concurrency": 8} | changes
    return OpenAIGeneratorConfig(**values)


def opened(emulator, path: str = MODEL, state_dir=None, **changes):
    return open_generator(settings(emulator, **changes), ModelConfig(path=path), state_dir=state_dir)


def requests(n: int = 7, model: str = MODEL) -> list[Request]:
    options = "Options:\nA. lost\nB. late\nC. broken"
    return [
        Request(f"r{i}", (Message("user", f"{options}\n\nwhere is parcel {i}? #{'ABC'[i % 3]}"),), ModelRef(model), i)
        for i in range(n)
    ]


def run(generator, reqs, **sampling):
    return {r.id: replace(r, n_prompt_tokens=0) for r in generator.generate(reqs, Sampling(**sampling))}


def test_generate_gives_every_id_once_with_n_completions(emulator):
    with opened(emulator) as generator:
        results = list(generator.generate(requests(), Sampling(n=3)))
    assert sorted(r.id for r in results) == [f"r{i}" for i in range(7)]
    assert all(len(r.completions) == 3 and r.error is None for r in results)
    assert all(
        c.logprob_kind == "raw" and all(x <= 0 for x in c.token_logprobs) for r in results for c in r.completions
    )


def test_generate_asks_again_for_the_samples_that_a_server_leaves_out(emulator):
    emulator.set_faults(ignore_n=True)
    with opened(emulator) as generator:
        assert not generator.abilities.n
        results = list(generator.generate(requests(3), Sampling(n=4)))
    assert [len(r.completions) for r in results] == [4, 4, 4]
    bodies = [r["body"] for r in emulator.requests("chat") if "parcel" in r["body"]["messages"][0]["content"]]
    assert len(bodies) == 12
    assert len({b["seed"] for b in bodies}) == 12


def test_generate_same_seed_same_result_in_any_order_and_subset(emulator):
    reqs = requests()
    with opened(emulator) as generator:
        whole = run(generator, reqs, n=2)
        assert whole == run(generator, reversed(reqs), n=2)
        assert run(generator, reqs[2:4], n=2) == {k: whole[k] for k in ("r2", "r3")}


def test_generate_at_temperature_0_gives_equal_samples(emulator):
    with opened(emulator) as generator:
        for result in generator.generate(requests(), Sampling(n=3, temperature=0)):
            assert len(set(result.completions)) == 1


def test_generate_takes_an_empty_stream(emulator):
    with opened(emulator) as generator:
        assert list(generator.generate(iter(()), Sampling())) == []
        assert list(generator.score_choices(iter(()))) == []


def test_generate_with_nothing_under_way_returns_at_a_pause(emulator):
    with opened(emulator) as generator:
        feed = iter([*requests(2), None, *requests(3)[2:], None, None])
        assert sorted(r.id for r in generator.generate(feed, Sampling())) == ["r0", "r1", "r2"]


def test_usage_counts_tokens_requests_and_dollars(emulator):
    with opened(emulator) as generator:
        before = generator.usage
        results = list(generator.generate(requests(5), Sampling(n=2)))
        used = generator.usage
    assert used.requests - before.requests == 5
    assert used.completion_tokens - before.completion_tokens == sum(r.n_completion_tokens for r in results)
    n_prompt = used.prompt_tokens - before.prompt_tokens
    n_completion = used.completion_tokens - before.completion_tokens
    assert used.dollars - before.dollars == pytest.approx((0.15 * n_prompt + 0.60 * n_completion) / 1e6)


def test_score_choices_is_refused(emulator):
    request = ChoiceRequest("r0", (Message("user", "?"),), ModelRef(MODEL), ("Answer: A", "Answer: B"))
    with opened(emulator) as generator, pytest.raises(GenerationError, match="answer_with: samples"):
        list(generator.score_choices([request]))


@pytest.mark.parametrize("kind", [*NOTHING_LOST, *PAID_AND_LOST, "no_usage"])
def test_one_answer_in_five_going_wrong_changes_no_result(emulator, kind):
    reqs = requests(40)
    with opened(emulator) as generator:
        expected = run(generator, reqs, n=2)
        emulator.reset()
        emulator.set_faults(seed=3, slow_seconds=0.05, **{kind: 0.2})
        found = run(generator, reqs, n=2)
    assert found == expected
    assert emulator.counters()["requests"]["POST /v1/chat/completions"] > 40 or kind in ("slow", "no_usage")
    if kind not in PAID_AND_LOST:
        assert emulator.bought_twice() == []


def test_refused_row_is_a_recorded_failure_and_the_others_go_on(emulator):
    with opened(emulator) as generator:
        emulator.set_faults(content_filter=2)
        results = list(generator.generate(requests(6), Sampling()))
    failed = [r for r in results if r.error]
    assert len(results) == 6
    assert len(failed) == 2
    assert all("content filter" in r.error for r in failed)


def test_row_too_long_for_the_model_is_a_recorded_failure(emulator):
    long = Request("long", (Message("user", "word " * 130_000),), ModelRef(MODEL))
    with opened(emulator) as generator:
        results = {r.id: r for r in generator.generate([long, *requests(1)], Sampling())}
    assert "context length" in results["long"].error
    assert results["r0"].error is None


def test_row_is_given_up_at_its_deadline(emulator):
    with opened(emulator, timeout_seconds=0.4) as generator:
        emulator.set_faults(server_error=True)
        (result,) = generator.generate(requests(1), Sampling())
    assert "given up after" in result.error
    assert "500" in result.error


def test_server_that_is_not_there_is_not_waited_for_till_the_deadline(emulator, monkeypatch):
    monkeypatch.setattr(openai_calls, "UNREACHABLE_SECONDS", 0.5)
    with (
        pytest.raises(GenerationError, match=r"127\.0\.0\.1:9/v1 does not answer: given up after . tr"),
        opened(emulator, base_url="http://127.0.0.1:9/v1"),
    ):
        pass


def test_unanswered_connection_is_given_up_and_tried_again(emulator):
    with opened(emulator, timeout_seconds=1.0) as generator:
        emulator.set_faults(slow=1, slow_seconds=5)
        (result,) = generator.generate(requests(1), Sampling())
    assert result.error is None


@pytest.mark.parametrize(
    ("faults", "changes", "model", "error", "words"),
    [
        ({}, {"api_key_env": "WRONG_KEY"}, MODEL, ConfigError, ("WRONG_KEY", MODEL)),
        ({}, {"api_key_env": "NOT_SET"}, MODEL, ConfigError, ("NOT_SET",)),
        ({}, {}, "gpt-none", ConfigError, ("gpt-none", "model.path")),
        ({"quota": True}, {}, MODEL, GenerationError, (MODEL, "quota", "run again")),
        ({"no_logprobs": True}, {"logprobs": "require"}, MODEL, ConfigError, (MODEL, "sample_entropy")),
        ({}, {}, "gpt-6-luna", ConfigError, ("gpt-6-luna", "reasoning_effort")),
    ],
)
def test_configuration_fault_raises_one_sentence_before_any_work(
    emulator, monkeypatch, faults, changes, model, error, words
):
    monkeypatch.setenv("WRONG_KEY", "sk-wrong-0123456789")
    monkeypatch.delenv("NOT_SET", raising=False)
    emulator.set_faults(**faults)
    with pytest.raises(error) as caught, opened(emulator, model, **changes):
        pass
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in (*words, emulator.base_url))
    assert "sk-" not in "".join(traceback.format_exception(caught.value))


def test_key_revoked_in_the_middle_stops_after_the_answers_that_came(emulator):
    with opened(emulator, max_concurrency=2) as generator:
        emulator.set_faults(quota={"skip": 10})
        found: list = []
        with pytest.raises(GenerationError, match="what is answered is kept"):
            list(iterate(generator, requests(40), found))
    assert len(found) == len(emulator.counters()["paid"]) - 2 >= 10  # two contents are the probe's


def interrupt_when_sent(emulator, n: int) -> None:
    while sum(emulator.counters()["requests"].values()) < n:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupt_waits_for_the_answers_under_way_and_sends_nothing_more(emulator):
    with opened(emulator, max_concurrency=2) as generator:
        emulator.reset()
        emulator.set_faults(latency_ms=1000)
        thread = threading.Thread(target=interrupt_when_sent, args=(emulator, 2))
        thread.start()
        found: list = []
        with pytest.raises(KeyboardInterrupt):
            list(iterate(generator, requests(40), found))
        thread.join()
    assert len(found) == sum(emulator.counters()["paid"].values()) == 2


def test_adapter_of_this_machine_is_asked_for_by_a_name_of_its_own(emulator, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    request = replace(requests(1)[0], model=ModelRef(MODEL, str(tmp_path)))
    with opened(emulator) as generator, pytest.raises(ConfigError, match=r"semievol-\w{12} at .* is not served"):
        list(generator.generate([request], Sampling()))


class Vllm(BaseHTTPRequestHandler):
    """As much of vLLM's server as loading an adapter and asking it takes."""

    loaded: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "vllm"} for name in ("base", *self.loaded)]
        self._say({"object": "list", "data": data})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/load_lora_adapter":
            self.loaded[body["lora_name"]] = body["lora_path"]
            self._say("Success: LoRA adapter added")
            return
        message = {"role": "assistant", "content": f"{body['model']} says so"}
        choices = [{"index": i, "message": message, "finish_reason": "stop"} for i in range(body.get("n", 1))]
        self._say({"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 3}})

    def _say(self, answer: object) -> None:
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_vllm_loads_an_adapter_of_this_machine(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vllm)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/v1"
    config = OpenAIGeneratorConfig(base_url=address, api_key_env=None, adapters="load")
    asked = [replace(r, model=ModelRef("base", str(tmp_path))) for r in requests(3)]
    with open_generator(config, ModelConfig(path="base")) as generator:
        texts = {r.completions[0].text for r in generator.generate(asked, Sampling())}
    server.shutdown()
    server.server_close()
    ((name, path),) = Vllm.loaded.items()
    assert path == str(tmp_path)
    assert texts == {f"{name} says so"}


def test_max_requests_stops_before_it_is_passed_over_all_processes(emulator, tmp_path):
    found: list = []
    with opened(emulator, state_dir=tmp_path, max_requests=20) as generator, pytest.raises(GenerationError) as caught:
        found.extend(r for r in iterate(generator, requests(40), found))
    n_first = emulator.counters()["requests"]["POST /v1/chat/completions"]
    assert n_first == 20
    assert len(found) == 17  # three requests went to the probe
    assert "max_requests: 20" in str(caught.value)
    assert "run again" in str(caught.value)
    with opened(emulator, state_dir=tmp_path, max_requests=22) as generator, pytest.raises(GenerationError):
        list(generator.generate(requests(5), Sampling()))
    assert emulator.counters()["requests"]["POST /v1/chat/completions"] == 22


def iterate(generator, reqs, found):
    for result in generator.generate(reqs, Sampling()):
        found.append(result)
    yield from ()


def test_max_cost_is_never_passed(emulator, tmp_path):
    found: list = []
    prices = PricesConfig(input=10.0, output=10.0)
    with opened(emulator, state_dir=tmp_path, max_cost=0.01, prices=prices) as generator:
        with pytest.raises(GenerationError, match="max_cost"):
            list(iterate(generator, requests(100), found))
        spent = generator.usage.dollars
    assert 0.005 < spent <= 0.01
    assert 10 < len(found) < 100


def test_max_cost_without_a_known_price_says_how_to_set_it(emulator):
    with pytest.raises(ConfigError, match=r"generator\.prices"):
        opened(emulator, "my-model", max_cost=1.0)


def test_probe_is_asked_once_a_run(emulator, tmp_path):
    with opened(emulator, state_dir=tmp_path) as generator:
        abilities = generator.abilities
    n = emulator.counters()["requests"]["POST /v1/chat/completions"]
    with opened(emulator, state_dir=tmp_path) as generator:
        assert generator.abilities == abilities
    assert emulator.counters()["requests"]["POST /v1/chat/completions"] == n <= 3


def test_server_without_logprobs_gives_completions_of_kind_none(emulator):
    emulator.set_faults(no_logprobs=True)
    with opened(emulator) as generator:
        assert not generator.gives_logprobs
        (result,) = generator.generate(requests(1), Sampling())
    assert result.completions[0].logprob_kind == "none"
    assert result.completions[0].token_logprobs == ()


def test_logprobs_off_never_asks_for_them(emulator):
    with opened(emulator, logprobs="off") as generator:
        list(generator.generate(requests(2), Sampling(top_logprobs=20)))
    assert not any("logprobs" in r["body"] or "top_logprobs" in r["body"] for r in emulator.requests("chat"))


def test_azure_names_the_deployment_in_the_address(emulator):
    azure = AzureConfig(endpoint=emulator.origin)
    with opened(emulator, "our-deployment", base_url=None, azure=azure, model=MODEL) as generator:
        (result,) = generator.generate(requests(1, "our-deployment"), Sampling())
    assert result.completions[0].text.startswith("Answer: ")
    assert {r["body"]["model"] for r in emulator.requests("chat")} == {MODEL}
