"""What the vllm generator promises beyond the contract of all: the numbers of the transformers generator, adapters,
other bases, and a server that crashes. The stand-in serves the same tiny Llama; under the mark `gpu` vLLM does."""

import json
from dataclasses import replace

import pytest

from semievol.answer_stream import AnswerStream
from semievol.artifacts import RunDir, content_hash
from semievol.backends.base import open_generator
from semievol.backends.vllm_service import check_adapter
from semievol.config import ModelConfig, TransformersGeneratorConfig, VllmGeneratorConfig
from semievol.errors import ConfigError, DataError, GenerationError
from semievol.types import ChoiceRequest, Message, ModelRef, Request, Result, Sampling
from tests.contract.test_generator_contract import Reference, choice_requests, requests, run, stops, texts

SETS = {
    "letters": ("Answer: A", "Answer: B", "Answer: D"),
    "labels": ("Answer: card lost", "Answer: card stolen", "Answer: top up failed", "Answer: refund"),
    "nested": ("Answer: card lost", "Answer: card lost abroad", "Answer: card", "Answer: top up limits now"),
    "no shared start": ("yes", "no, it is not"),
    "single": ("Answer: only this",),
    "many": tuple(f"Answer: {a}{b}" for a in "ABCDEFGHIJKL" for b in "abcdefghijklmnop"),
}


@pytest.fixture(scope="module", params=["stand-in", pytest.param("vllm", marks=pytest.mark.gpu)])
def case(request):
    """(generator, its ModelRef, the transformers generator on the same model)."""
    names = ("standin_generator", "tiny_llama_dir")
    if request.param == "vllm":
        names = ("gpu_vllm_generator", "gpu_llama_dir")
    generator, path = (request.getfixturevalue(name) for name in names)
    with open_generator(TransformersGeneratorConfig(), ModelConfig(path=path, dtype="float32")) as local:
        yield generator, ModelRef(path), local


# The numbers of the transformers generator


@pytest.mark.parametrize("completions", SETS.values(), ids=SETS.keys())
def test_scores_equal_those_of_the_transformers_generator(case, completions):
    generator, ref, local = case
    expected = {s.id: s for s in local.score_choices(choice_requests(ref, completions, 3))}
    found = {s.id: s for s in generator.score_choices(choice_requests(ref, completions, 3))}
    assert found.keys() == expected.keys()
    for key, scores in found.items():
        assert scores.logprobs == pytest.approx(expected[key].logprobs, abs=1e-4)
        assert scores.prefix_logprob == pytest.approx(expected[key].prefix_logprob, abs=1e-4)
        assert scores.n_tokens == expected[key].n_tokens
        assert scores.n_prompt_tokens == expected[key].n_prompt_tokens


def test_greedy_completions_equal_those_of_the_transformers_generator(case):
    generator, ref, local = case
    expected = run(local, requests(ref), n=2, temperature=0, max_tokens=8)
    found = run(generator, requests(ref), n=2, temperature=0, max_tokens=8)
    for key, result in found.items():
        assert texts(result) == texts(expected[key])
        assert (result.n_prompt_tokens, result.n_completion_tokens) == (
            expected[key].n_prompt_tokens,
            expected[key].n_completion_tokens,
        )
        for a, b in zip(result.completions, expected[key].completions, strict=True):
            assert a.token_logprobs == pytest.approx(b.token_logprobs, abs=1e-4)
            assert (a.finish_reason, a.logprob_kind) == (b.finish_reason, b.logprob_kind)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.6, "top_p": 0.8}], ids=["raw", "nucleus"])
def test_sampled_logprobs_equal_teacher_forcing(case, sampling, monkeypatch):
    generator, ref, _ = case
    reference, drawn = Reference(ref.base), []
    original = generator._prompts.completion

    def note(sample, stop_ids):
        drawn.append(sample)
        return original(sample, stop_ids)

    monkeypatch.setattr(generator._prompts, "completion", note)
    for request in requests(ref, 3):
        (result,) = generator.generate([request], Sampling(n=8, max_tokens=24, **sampling))
        for sample, completion in zip(drawn[-8:], result.completions, strict=True):
            expected = reference.logprobs(reference.prompt(request.messages), list(sample.tokens))
            assert completion.token_logprobs == pytest.approx(expected, abs=1e-4)
            assert (completion.finish_reason == "stop") == (sample.tokens[-1] in stops(reference.tokenizer))
            kept = [t for t in sample.tokens if t not in stops(reference.tokenizer)]
            assert completion.text == reference.tokenizer.decode(kept, skip_special_tokens=True).strip()
    if not sampling:
        assert any(d.stopped for d in drawn)


def test_adapters_answer_beside_the_base_from_one_load(case, make_adapter):
    generator, ref, local = case
    list(generator.score_choices(choice_requests(ref, SETS["letters"], 1)))
    port = generator._service._server.port
    warm = replace(ref, adapter=make_adapter(ref.base, 1))
    mixed = [
        replace(r, id=f"{name}-{r.id}")
        for i in range(3)
        for name, model in (("base", ref), ("warm", warm))
        for r in choice_requests(model, SETS["letters"], 3)[i : i + 1]
    ]
    expected = {s.id: s for s in local.score_choices(mixed)}
    found = {s.id: s for s in generator.score_choices(mixed)}
    assert found.keys() == expected.keys()
    for key, scores in found.items():
        assert scores.logprobs == pytest.approx(expected[key].logprobs, abs=1e-4)
    assert found["warm-r0"].logprobs != pytest.approx(found["base-r0"].logprobs, abs=1e-2)
    assert generator._service._server.port == port


def test_rows_that_do_not_fit_are_refused_before_they_are_sent(case):
    generator, ref, _ = case
    before = generator.usage.requests
    long = Message("user", "card lost " * 600)
    (result,) = generator.generate([Request("long", (long,), ref)], Sampling(max_tokens=4))
    assert "max_length 512" in result.error
    with pytest.raises(GenerationError, match="row long"):
        list(generator.score_choices([ChoiceRequest("long", (long,), ref, ("A", "B"))]))
    with pytest.raises(DataError, match="r0"):
        list(generator.score_choices(choice_requests(ref, ("Answer: A", "Answer: A"), 1)))
    assert generator.usage.requests == before


# The server, with tokens from hashes


@pytest.fixture
def opened(vllm_python, tiny_llama_dir, monkeypatch, tmp_path):
    """Opens a generator over the stand-in with what goes wrong; its log is in tmp_path."""
    generators = []

    def make(standin="", **changes):
        monkeypatch.setenv("VLLM_STANDIN", f"engine=hash,{standin}")
        config = VllmGeneratorConfig(python=vllm_python, **({"max_concurrency": 2} | changes))
        generator = open_generator(config, ModelConfig(path=tiny_llama_dir), state_dir=tmp_path)
        generators.append(generator.__enter__())
        return generator

    yield make
    for generator in generators:
        generator.__exit__(None, None, None)


def n_starts(folder) -> int:
    return (folder / "vllm.log").read_text().count("non-default args")


def test_nothing_is_started_before_the_first_request(opened, tmp_path):
    generator = opened()
    assert list(generator.generate(iter(()), Sampling())) == []
    assert list(generator.generate(iter([None]), Sampling())) == []
    assert not (tmp_path / "vllm.log").exists()


def test_other_base_takes_the_place_of_the_one_that_is_served(opened, tiny_llama_dir, tiny_qwen_dir, tmp_path):
    generator = opened()
    both = [
        replace(r, id=f"{i}-{r.id}")
        for pair in zip(requests(ModelRef(tiny_llama_dir), 3), requests(ModelRef(tiny_qwen_dir), 3), strict=True)
        for i, r in enumerate(pair)
    ]
    found = run(generator, both, max_tokens=3)
    assert sorted(found) == sorted(r.id for r in both)
    assert n_starts(tmp_path) == 2
    assert f"serve {tiny_qwen_dir} " in (tmp_path / "vllm.log").read_text()


def test_crash_is_survived_and_changes_no_result(opened, tiny_llama_dir, make_adapter, tmp_path):
    ref = ModelRef(tiny_llama_dir)
    reqs = [
        *requests(ref, 5),
        *(replace(r, id=f"w{r.id}") for r in requests(ModelRef(ref.base, make_adapter(ref.base)))),
    ]
    expected = run(opened(), reqs, n=2, max_tokens=3)
    crashing = opened("crash_after=9")
    assert run(crashing, reqs, n=2, max_tokens=3) == expected
    assert crashing._service._n_restarts == 1
    assert "--lora-modules" in (tmp_path / "vllm.log").read_text()


def test_server_that_crashes_too_often_is_one_error_and_the_next_run_goes_on(opened, tiny_llama_dir, tmp_path):
    from pydantic import TypeAdapter

    reqs = requests(ModelRef(tiny_llama_dir), 7)
    adapter = TypeAdapter(Result)

    def answer_all(generator):
        keyed = ((content_hash(r.id), r) for r in reqs)
        with RunDir(tmp_path / "run").rows() as store:
            stream = AnswerStream(keyed, store, adapter, lambda _: None, look_ahead=generator.look_ahead)
            return list(stream.answers(lambda rows: generator.generate(rows, Sampling(max_tokens=3)), "propagate"))

    with pytest.raises(GenerationError, match=r"ended with code 7 .*after 1 restarts(?s:.)*illegal memory access"):
        answer_all(opened("crash_after=3", max_restarts=1))
    with RunDir(tmp_path / "run").rows() as store:
        kept = store.get([content_hash(r.id) for r in reqs])
    assert 2 <= len(kept) <= 4
    resumed = opened()
    results = answer_all(resumed)
    assert [r.id for r in results] == [r.id for r in reqs]
    assert all(r.error is None for r in results)
    assert resumed.usage.requests == len(reqs) - len(kept)


def test_crash_while_an_adapter_is_loaded_is_survived(opened, tiny_llama_dir, make_adapter):
    generator = opened("crash_on_load=1")
    warm = requests(ModelRef(tiny_llama_dir, make_adapter(tiny_llama_dir)), 3)
    assert all(r.error is None for r in run(generator, warm, max_tokens=2).values())
    assert generator._service._n_restarts == 1


def test_adapter_that_the_server_refuses_is_an_error_in_its_words(opened, tiny_llama_dir, make_adapter):
    generator = opened("refuse_load=1")
    with pytest.raises(ConfigError, match=r"could not load the adapter in .*LoRA rank 4 is not supported"):
        run(generator, requests(ModelRef(tiny_llama_dir, make_adapter(tiny_llama_dir)), 1), max_tokens=2)
    assert len(run(generator, requests(ModelRef(tiny_llama_dir), 2), max_tokens=2)) == 2


@pytest.mark.parametrize(
    ("stored", "match"),
    [
        ({"r": 64}, r"generator\.max_lora_rank"),
        ({"r": 8, "modules_to_save": ["lm_head"]}, "lm_head"),
        ({"r": 8, "target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"r": 8, "use_dora": True}, "DoRA"),
        (None, "cannot be opened"),
    ],
)
def test_adapters_that_vllm_cannot_serve_are_refused(tmp_path, stored, match):
    if stored is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(ConfigError, match=match):
        check_adapter(tmp_path, VllmGeneratorConfig())
