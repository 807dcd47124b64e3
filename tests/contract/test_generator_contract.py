"""What every generator promises (backends/base.py), run on each of them; the transformers ones also against an
unbatched reference in plain transformers."""

import math
from dataclasses import replace

import pytest

from semievol.backends.base import open_generator, open_tokens
from semievol.config import (
    FakeGeneratorConfig,
    ModelConfig,
    RayGeneratorConfig,
    TransformersGeneratorConfig,
    VllmGeneratorConfig,
)
from semievol.errors import ConfigError, DataError, GenerationError
from semievol.types import ChoiceRequest, Message, ModelRef, Request, Sampling

MODELS = ["llama", "qwen", "bert", "mistral"]
SHARED = (
    "Choose the right option. Reply with Answer: and its letter.\nOptions:\nA. refund\nB. delivery\nC. card lost\n\n"
)
WORDS = "where is my parcel the card was lost abroad top up failed again and the limits are low".split()  # noqa: SIM905


def question(i: int) -> str:
    return "Question: " + " ".join(WORDS[: 2 + (i * 5) % 14]) + f" {i}? #{'ABCD'[i % 4]}"


SHARED_BY_SOME = (
    SHARED + "Ticket: top up failed twice and the card was charged. Answer: top up. ",
    SHARED + "Ticket: refund. ",
    SHARED,
)
"""Starts that rows take in turns: those of rows with demonstrations in common."""


def requests(model: ModelRef, n: int = 7, shared: str | tuple[str, ...] = SHARED) -> list[Request]:
    starts = (shared,) if isinstance(shared, str) else shared
    texts = [starts[i % len(starts)] + question(i) for i in range(n)]
    return [Request(f"r{i}", (Message("user", text),), model, seed=100 + i) for i, text in enumerate(texts)]


def choice_requests(
    model: ModelRef, completions: tuple[str, ...], n: int = 5, shared: str | tuple[str, ...] = SHARED
) -> list[ChoiceRequest]:
    return [ChoiceRequest(r.id, r.messages, r.model, completions) for r in requests(model, n, shared)]


def run(backend, reqs, **sampling):
    return {r.id: r for r in backend.generate(reqs, Sampling(**sampling))}


VLLM = {"vllm stand-in": ("standin_generator", "tiny_llama_dir"), "vllm": ("gpu_vllm_generator", "gpu_llama_dir")}
"""Fixtures of the open generator and of its model."""
REAL_RAY = pytest.param("real ray", marks=(pytest.mark.slow, pytest.mark.timeout(900)))
REAL_VLLM = pytest.param("vllm", marks=pytest.mark.gpu)


@pytest.fixture(scope="module", params=["fake", *MODELS, "pocket", "vllm stand-in", REAL_VLLM, "ray", REAL_RAY])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def config(request, name):
    """(generator config, model config) of a backend."""
    if name in VLLM:
        return VllmGeneratorConfig(), ModelConfig(path=request.getfixturevalue(VLLM[name][1]))
    if name == "fake":
        return FakeGeneratorConfig(), ModelConfig(path="fake-model")
    if "ray" in name:
        request.getfixturevalue("ray_standin" if name == "ray" else "real_ray")
        inner = {"type": "transformers", "threads": 1}
        model = ModelConfig(path=request.getfixturevalue("tiny_llama_dir"), device="cpu")
        return RayGeneratorConfig.model_validate({"inner": inner, "replicas": 2, "shard_rows": 3}), model
    name = "pocket_dir" if name == "pocket" else f"tiny_{name}_dir"
    return TransformersGeneratorConfig(), ModelConfig(path=request.getfixturevalue(name), device="cpu")


@pytest.fixture(scope="module")
def backend(request, name, config):
    if name in VLLM:  # started once for all modules
        yield request.getfixturevalue(VLLM[name][0])
        return
    with open_generator(*config) as generator:
        yield generator


@pytest.fixture(scope="module")
def ref(config):
    return ModelRef(config[1].path)


@pytest.fixture(scope="module", params=MODELS)
def local(request):
    """(generator, its ModelRef, an unbatched float32 reference) of a transformers model."""
    path = request.getfixturevalue(f"tiny_{request.param}_dir")
    with open_generator(TransformersGeneratorConfig(), ModelConfig(path=path, device="cpu")) as generator:
        yield generator, ModelRef(path), Reference(path)


class Reference:
    """Log-probabilities and greedy answers of a model, one row at a time, without cache."""

    def __init__(self, path: str, adapter: str | None = None) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()
        if adapter is not None:
            self.model = PeftModel.from_pretrained(self.model, adapter).eval()

    def prompt(self, messages) -> list[int]:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)

    def logprobs(self, prompt: list[int], completion: list[int]) -> list[float]:
        import torch

        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].double()
        table = logits.log_softmax(-1)
        return [table[len(prompt) + i - 1, token].item() for i, token in enumerate(completion)]

    def greedy(self, prompt: list[int], max_tokens: int, stop: list[int]) -> list[int]:
        import torch

        ids = torch.tensor([prompt])
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=stop,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].tolist()


def stops(tokenizer) -> list[int]:
    return [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]


# Every backend


def test_generate_gives_every_id_once_with_n_completions(backend, ref):
    results = list(backend.generate(requests(ref), Sampling(n=3, max_tokens=6)))
    assert sorted(r.id for r in results) == [f"r{i}" for i in range(7)]
    assert all(len(r.completions) == 3 and r.error is None for r in results)


def test_generate_reports_raw_logprobs_one_a_token(backend, ref):
    for result in backend.generate(requests(ref), Sampling(n=2, max_tokens=6)):
        assert result.n_completion_tokens == sum(len(c.token_logprobs) for c in result.completions)
        for completion in result.completions:
            assert completion.logprob_kind == "raw"
            assert 1 <= len(completion.token_logprobs) <= 6
            assert all(x <= 0 for x in completion.token_logprobs)


def test_generate_same_seed_same_result_in_any_order_and_subset(backend, ref):
    reqs = requests(ref)
    whole = run(backend, reqs, n=3, max_tokens=6)
    backward = run(backend, reversed(reqs), n=3, max_tokens=6)
    some = run(backend, reqs[2:4], n=3, max_tokens=6)
    alone = run(backend, reqs[5:6], n=3, max_tokens=6)
    assert_same(whole, backward)
    assert_same({k: whole[k] for k in some}, some)
    assert_same({k: whole[k] for k in alone}, alone)


def test_generate_does_not_depend_on_batch_size(config, backend, ref):
    generator_config, model = config
    if not isinstance(generator_config, TransformersGeneratorConfig):
        pytest.skip("makes no batches itself")
    small = TransformersGeneratorConfig(batch_tokens=300)
    with open_generator(small, model) as other:
        assert_same(run(backend, requests(ref), n=2, max_tokens=5), run(other, requests(ref), n=2, max_tokens=5))


def test_generate_sample_i_is_the_same_for_any_n(backend, ref):
    two = run(backend, requests(ref), n=2, max_tokens=6)
    four = run(backend, requests(ref), n=4, max_tokens=6)
    for key, result in two.items():
        assert texts(result) == texts(four[key])[:2]


def test_generate_other_seed_gives_other_samples(backend, ref):
    reqs = requests(ref)
    one = run(backend, reqs, n=4, max_tokens=8)
    other = run(backend, [replace(r, seed=r.seed + 1) for r in reqs], n=4, max_tokens=8)
    assert any(texts(one[k]) != texts(other[k]) for k in one)


def test_generate_at_temperature_0_gives_equal_samples(backend, ref):
    for result in backend.generate(requests(ref), Sampling(n=3, temperature=0, max_tokens=5)):
        assert len(set(result.completions)) == 1


def test_generate_takes_an_empty_stream(backend):
    assert list(backend.generate(iter(()), Sampling())) == []
    assert list(backend.score_choices(iter(()))) == []


def test_score_choices_is_a_distribution_with_the_rest_off_set(backend, ref):
    scores = list(backend.score_choices(choice_requests(ref, ("Answer: A", "Answer: B", "Answer: C"))))
    assert sorted(s.id for s in scores) == [f"r{i}" for i in range(5)]
    for s in scores:
        assert len(s.logprobs) == len(s.n_tokens) == 3
        assert math.fsum(s.probabilities) == pytest.approx(1)
        assert 0 <= s.off_set_mass <= 1
        assert math.fsum(map(math.exp, s.logprobs)) <= 1 + 1e-5
        assert s.prefix_logprob <= 0


def test_score_choices_does_not_depend_on_the_company(backend, ref):
    reqs = choice_requests(ref, ("Answer: A", "Answer: B", "Answer: C"))
    whole = {s.id: s for s in backend.score_choices(reqs)}
    for r in reqs:
        (alone,) = backend.score_choices([r])
        assert alone.logprobs == pytest.approx(whole[r.id].logprobs, abs=1e-4)


def test_usage_grows(backend, ref):
    before = backend.usage
    list(backend.generate(requests(ref, 2), Sampling(max_tokens=3)))
    after = backend.usage
    assert after.prompt_tokens > before.prompt_tokens
    assert after.completion_tokens > before.completion_tokens


def test_tokens_count_what_the_generator_sees(config, backend, ref):
    tokens = open_tokens(*config)
    for r in requests(ref, 3):
        (result,) = backend.generate([r], Sampling(max_tokens=1))
        assert tokens.count_prompt(r.messages) == result.n_prompt_tokens
    assert tokens.count_text("Answer: A") > 0
    assert SHARED.split()[0].lower() in tokens.render(requests(ref, 1)[0].messages).lower()
    assert len(tokens.fingerprint) == 64
    assert tokens.fingerprint == open_tokens(*config).fingerprint


# Local models against an unbatched reference


@pytest.fixture(params=[1024, 60], ids=["whole", "cut"])
def columns(request, monkeypatch):
    """Columns of a pass over prompts: those of all rows of a batch, or of two or three."""
    from semievol.backends import decoding

    monkeypatch.setitem(decoding.MAX_COLUMNS, "cpu", request.param)


@pytest.mark.parametrize("shared", [SHARED, SHARED_BY_SOME, ""], ids=["shared", "shared by some", "plain"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.6, "top_p": 0.8}], ids=["raw", "nucleus"])
def test_sampled_logprobs_equal_teacher_forcing(local, shared, sampling, columns, monkeypatch):
    generator, ref, reference = local
    drawn = record_tokens(monkeypatch)
    reqs = requests(ref, shared=shared)
    results = run(generator, reqs, n=4, max_tokens=12, **sampling)
    assert len(drawn) == len(reqs)
    for prompt, samples in drawn:
        (key,) = [r.id for r in reqs if reference.prompt(r.messages) == prompt]
        for sample, completion in zip(samples, results[key].completions, strict=True):
            assert completion.token_logprobs == pytest.approx(reference.logprobs(prompt, sample.tokens), abs=1e-4)
            assert (completion.finish_reason == "stop") == (sample.tokens[-1] in stops(reference.tokenizer))


def test_greedy_equals_transformers_generate(local, columns, monkeypatch):
    generator, ref, reference = local
    drawn = record_tokens(monkeypatch)
    run(generator, requests(ref, shared=SHARED_BY_SOME), temperature=0, max_tokens=10)
    for prompt, samples in drawn:
        assert samples[0].tokens == reference.greedy(prompt, 10, stops(reference.tokenizer))


def test_samples_follow_the_models_distribution(local):
    generator, ref, _ = local
    (request,) = requests(ref, 1)
    n = 600
    (result,) = generator.generate([request], Sampling(n=n, max_tokens=1))
    found = {}
    for completion in result.completions:
        found[completion.token_logprobs[0]] = found.get(completion.token_logprobs[0], 0) + 1
    for logprob, count in found.items():
        p = math.exp(logprob)
        assert abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 3


@pytest.mark.parametrize(
    "completions",
    [
        ("Answer: A", "Answer: B", "Answer: D"),
        ("Answer: card lost", "Answer: card stolen", "Answer: top up failed", "Answer: refund"),
        ("Answer: card lost", "Answer: card lost abroad", "Answer: card", "Answer: top up limits now"),
        ("yes", "no, it is not"),
        ("Answer: only this",),
    ],
    ids=["letters", "labels", "nested", "no shared start", "single"],
)
def test_score_choices_equals_unbatched_reference(local, completions, columns):
    generator, ref, reference = local
    reqs = choice_requests(ref, completions, shared=SHARED_BY_SOME)
    for scores in generator.score_choices(reqs):
        (request,) = [r for r in reqs if r.id == scores.id]
        prefix, expected, counts = reference_scores(reference, request)
        assert scores.logprobs == pytest.approx(expected, abs=1e-4)
        assert scores.prefix_logprob == pytest.approx(prefix, abs=1e-4)
        assert scores.n_tokens == counts


@pytest.mark.parametrize("work", ["score", "sample"])
def test_a_start_that_some_prompts_share_is_run_once(tiny_llama_dir, work, monkeypatch):
    from semievol.backends.decoding import CausalLm
    from semievol.backends.tries import common_length

    run_tokens = []
    forward = CausalLm._forward

    def count(self, ids, mask, *args, **kwargs):
        run_tokens.append(int(mask[:, -ids.shape[1] :].sum()) if mask.dim() == 2 else ids.numel())
        return forward(self, ids, mask, *args, **kwargs)

    monkeypatch.setattr(CausalLm, "_forward", count)
    ref = ModelRef(tiny_llama_dir)
    with open_generator(TransformersGeneratorConfig(), ModelConfig(path=tiny_llama_dir, device="cpu")) as generator:
        reqs = choice_requests(ref, ("A", "B"), 30, SHARED_BY_SOME)
        if work == "score":
            list(generator.score_choices(reqs))
        else:
            run(generator, requests(ref, 30, SHARED_BY_SOME), max_tokens=1)
        encoded = [tuple(ids) for ids in generator._encode_prompts(reqs)]
    shared_by_all = common_length(encoded)
    groups = [encoded[i :: len(SHARED_BY_SOME)] for i in range(len(SHARED_BY_SOME))]
    shared = [common_length(group) for group in groups]
    assert min(shared[:2]) > shared_by_all + 8
    own = sum(len(ids) - n for group, n in zip(groups, shared, strict=True) for ids in group)
    assert sum(run_tokens) <= shared_by_all + sum(n - shared_by_all for n in shared) + own


def test_score_choices_with_other_sets_in_one_call(local):
    generator, ref, reference = local
    sets = [("Answer: A", "Answer: B"), ("card lost", "card stolen", "card lost abroad"), ("1", "2", "3", "45 6")]
    reqs = [replace(r, completions=sets[i % 3]) for i, r in enumerate(choice_requests(ref, sets[0], 6))]
    for scores in generator.score_choices(reqs):
        (request,) = [r for r in reqs if r.id == scores.id]
        assert scores.logprobs == pytest.approx(reference_scores(reference, request)[1], abs=1e-4)


def test_score_choices_cuts_large_tries(tiny_llama_dir, monkeypatch):
    from semievol.backends import decoding

    labels = tuple(f"Answer: {a} {b} {c}" for a in WORDS[:3] for b in WORDS[3:6] for c in WORDS[6:9])
    with open_generator(TransformersGeneratorConfig(), ModelConfig(path=tiny_llama_dir, device="cpu")) as generator:
        reqs = choice_requests(ModelRef(tiny_llama_dir), labels, 3)
        whole = {s.id: s for s in generator.score_choices(reqs)}
        monkeypatch.setattr(decoding, "LOGITS_BYTES", 4 * 400 * 12)
        for cut in generator.score_choices(reqs):
            assert cut.logprobs == pytest.approx(whole[cut.id].logprobs, abs=1e-4)


def test_score_choices_refuses_completions_of_equal_tokens(local):
    generator, ref, _ = local
    with pytest.raises(DataError, match="r0"):
        list(generator.score_choices(choice_requests(ref, ("Answer: A", "Answer: A"), 1)))


def test_score_choices_refuses_a_prompt_that_is_too_long(local):
    generator, ref, _ = local
    long = ChoiceRequest("long", (Message("user", "card lost " * 600),), ref, ("A", "B"))
    with pytest.raises(GenerationError, match="row long"):
        list(generator.score_choices([long]))


def test_adapters_switch_and_equal_a_fresh_load(local, make_adapter):
    generator, ref, _ = local
    warm, final = (replace(ref, adapter=make_adapter(ref.base, seed)) for seed in (1, 2))
    completions = ("Answer: A", "Answer: B", "Answer: C")
    before = {s.id: s for s in generator.score_choices(choice_requests(ref, completions))}
    for model in (warm, final, warm):
        reference = Reference(model.base, model.adapter)
        reqs = choice_requests(model, completions)
        for scores in generator.score_choices(reqs):
            (request,) = [r for r in reqs if r.id == scores.id]
            assert scores.logprobs == pytest.approx(reference_scores(reference, request)[1], abs=1e-4)
            assert scores.logprobs != pytest.approx(before[scores.id].logprobs, abs=1e-2)
    after = {s.id: s for s in generator.score_choices(choice_requests(ref, completions))}
    for key, scores in after.items():
        assert scores.logprobs == pytest.approx(before[key].logprobs, abs=1e-4)


def test_one_call_may_mix_models(local, make_adapter):
    generator, ref, _ = local
    warm = replace(ref, adapter=make_adapter(ref.base, 1))
    base_results = run(generator, requests(ref, 4), n=2, max_tokens=4)
    warm_results = run(generator, requests(warm, 4), n=2, max_tokens=4)
    mixed = [
        replace(r, id=f"{name}-{r.id}") for name, model in (("base", ref), ("warm", warm)) for r in requests(model, 4)
    ]
    results = run(generator, mixed[::2] + mixed[1::2], n=2, max_tokens=4)
    for key, result in base_results.items():
        assert texts(results[f"base-{key}"]) == texts(result)
        assert texts(results[f"warm-{key}"]) == texts(warm_results[key])


def test_another_base_is_opened_in_its_place(tiny_llama_dir, tiny_qwen_dir):
    completions = ("Answer: A", "Answer: B")
    with open_generator(TransformersGeneratorConfig(), ModelConfig(path=tiny_llama_dir, device="cpu")) as generator:
        other = {s.id: s for s in generator.score_choices(choice_requests(ModelRef(tiny_qwen_dir), completions))}
    with open_generator(TransformersGeneratorConfig(), ModelConfig(path=tiny_qwen_dir, device="cpu")) as generator:
        own = {s.id: s for s in generator.score_choices(choice_requests(ModelRef(tiny_qwen_dir), completions))}
    assert own == other


@pytest.mark.parametrize(("max_loaded_models", "n_opened"), [(1, 4), (2, 2)])
def test_bases_stay_open_up_to_the_limit(tiny_llama_dir, tiny_qwen_dir, monkeypatch, max_loaded_models, n_opened):
    import semievol.backends.transformers as transformers_backend

    opened = []
    open_model = transformers_backend.open_model

    def count_opened(config, ref, **options):
        opened.append(ref.base)
        return open_model(config, ref, **options)

    monkeypatch.setattr(transformers_backend, "open_model", count_opened)
    config = TransformersGeneratorConfig(max_loaded_models=max_loaded_models)
    with open_generator(config, ModelConfig(path=tiny_llama_dir, device="cpu")) as generator:
        for path in (tiny_llama_dir, tiny_qwen_dir, tiny_llama_dir, tiny_qwen_dir):
            list(generator.score_choices(choice_requests(ModelRef(path), ("A", "B"))))
    assert len(opened) == n_opened


def test_out_of_memory_first_closes_the_base_that_is_not_in_use(tiny_llama_dir, tiny_qwen_dir, monkeypatch):
    import torch

    from semievol.backends.decoding import CausalLm

    with open_generator(TransformersGeneratorConfig(), ModelConfig(path=tiny_llama_dir, device="cpu")) as generator:
        run(generator, requests(ModelRef(tiny_llama_dir), 2), max_tokens=2)
        expected = run(generator, requests(ModelRef(tiny_qwen_dir)), n=2, max_tokens=5)
        before = generator._batch_tokens
        passes = iter([True])

        def fail_once(self, *args, **kwargs):
            if next(passes, False):
                raise torch.OutOfMemoryError("out of memory")
            return forward(self, *args, **kwargs)

        forward = CausalLm._forward
        monkeypatch.setattr(CausalLm, "_forward", fail_once)
        assert_same(run(generator, requests(ModelRef(tiny_qwen_dir)), n=2, max_tokens=5), expected)
        assert generator._batch_tokens == before
        assert list(generator._bases) == [tiny_qwen_dir]


def test_prompt_that_is_too_long_is_a_recorded_failure(local):
    generator, ref, _ = local
    long = Request("long", (Message("user", "card lost " * 600),), ref)
    results = run(generator, [long, *requests(ref, 2)], max_tokens=4)
    assert "max_length 512" in results["long"].error
    assert results["r0"].error is None


def test_out_of_memory_halves_the_batch(tiny_llama_dir, monkeypatch):
    with open_generator(TransformersGeneratorConfig(), ModelConfig(path=tiny_llama_dir, device="cpu")) as generator:
        ref = ModelRef(tiny_llama_dir)
        expected = run(generator, requests(ref), n=2, max_tokens=5)
        limit_rows(monkeypatch, 2)
        assert_same(run(generator, requests(ref), n=2, max_tokens=5), expected)
        limit_rows(monkeypatch, 0)
        results = run(generator, requests(ref, 2), max_tokens=5)
        assert all("out of memory" in r.error for r in results.values())
        with pytest.raises(GenerationError, match="out of memory"):
            list(generator.score_choices(choice_requests(ref, ("A", "B"), 1)))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"path": "/nowhere/model"}, "model.path"),
        ({"device": "warp:3"}, "model.device"),
        ({"chat_template": "{% if %}"}, "model.chat_template"),
        ({"chat_template": "missing.jinja"}, "model.chat_template"),
        ({"max_length": 100_000}, "model.max_length"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_work(tiny_llama_dir, settings, match):
    with pytest.raises(ConfigError, match=match):
        open_generator(TransformersGeneratorConfig(), ModelConfig(**{"path": tiny_llama_dir} | settings))


def test_base_without_chat_template_is_refused_with_the_remedy(tiny_llama_dir, tmp_path):
    import shutil

    folder = tmp_path / "plain"
    shutil.copytree(tiny_llama_dir, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"set model\.chat_template"):
        open_tokens(TransformersGeneratorConfig(), ModelConfig(path=str(folder)))
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", encoding="utf-8")
    tokens = open_tokens(TransformersGeneratorConfig(), ModelConfig(path=str(folder), chat_template=str(template)))
    assert tokens.render([Message("user", "hello")]) == "hello<|endoftext|>"


# Helpers


def texts(result):
    return [c.text for c in result.completions]


def assert_same(left, right):
    """Same texts, log-probabilities to within the rounding of another batch shape."""
    assert left.keys() == right.keys()
    for key, result in left.items():
        assert texts(result) == texts(right[key])
        for a, b in zip(result.completions, right[key].completions, strict=True):
            assert a.token_logprobs == pytest.approx(b.token_logprobs, abs=1e-4)


def record_tokens(monkeypatch):
    """Notes the prompts and samples of every batch that is drawn."""
    from semievol.backends.decoding import CausalLm

    drawn = []
    original = CausalLm.sample

    def sample(self, prompts, samples, **how):
        original(self, prompts, samples, **how)
        drawn.extend(zip(prompts, samples, strict=True))

    monkeypatch.setattr(CausalLm, "sample", sample)
    return drawn


def limit_rows(monkeypatch, n_rows):
    """A device that holds no more than `n_rows` rows."""
    import torch

    from semievol.backends.decoding import CausalLm

    original = CausalLm._forward

    def forward(self, ids, *args, **kwargs):
        if len(ids) > n_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, ids, *args, **kwargs)

    monkeypatch.setattr(CausalLm, "_forward", forward)


def reference_scores(reference, request):
    """(prefix log-probability, scores, token counts) by one unbatched pass a completion."""
    prompt = reference.prompt(request.messages)
    bodies = [reference.tokenizer(c, add_special_tokens=False)["input_ids"] for c in request.completions]
    end = reference.tokenizer.convert_tokens_to_ids("<|im_end|>")
    scored = [[*b, end] if any(o != b and o[: len(b)] == b for o in bodies) else b for b in bodies]
    shared = 0
    if len(scored) > 1:
        while len({tuple(s[: shared + 1]) for s in scored}) == 1 and all(len(s) > shared for s in scored):
            shared += 1
    tables = [reference.logprobs(prompt, s) for s in scored]
    return (
        math.fsum(tables[0][:shared]),
        [math.fsum(t[shared:]) for t in tables],
        tuple(len(s) - shared for s in scored),
    )
