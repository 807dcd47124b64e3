"""Speed of exact scoring, of pseudo-labelling and of shared prefill, for benchmarks/speed.py."""

import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from speed_ceilings import matmul_ceiling
from speed_models import SHAPES, Shape, fill_to_lengths, forward_flops, write_model
from speed_timing import Figure, Setting, median_ratio

from semievol.answering import choice_request
from semievol.backends.base import Tokens, open_generator, open_retriever, open_tokens
from semievol.backends.hf import encode, open_model, open_tokenizer, render_prompt, render_prompt_ids, stop_ids
from semievol.backends.shared_starts import group_by_start
from semievol.backends.tries import common_length
from semievol.config import ModelConfig, TaskConfig, TransformersGeneratorConfig, parse_config
from semievol.demo.tickets import generate_tickets
from semievol.demonstrations import fit_demonstrations, retrieve
from semievol.loading import load_examples
from semievol.prompts import PromptBuilder
from semievol.types import ChoiceRequest, Example, Message, ModelRef, Request, Sampling, TaskFacts

CHOICES = ("refund", "delivery", "card lost", "card stolen")
N_PASSES = 4
"""n of the method: answers of four configurations, here four times the same one, as in the released code."""
K = 3
BASELINE_BATCH = 16
"""Rows of a padded batch in the released flow's way."""
MAX_TOKENS = 16
"""Of an answer, on both sides: what `propagate.max_tokens` is for a choice task. The released code allows 1,024, which
would make its way slower still wherever one row of a batch does not stop."""
N_SAMPLES = 8
PREFILL_TOKENS = 400
NEW_TOKENS = 8
"""Of each sample: those of an answer such as "Answer: card lost abroad" and its end. Random weights never stop, so all
samples have as many; with more of them both sides spend more of their time behind the prompt."""


def ticket_texts(model: ModelConfig, lengths: Sequence[int], *, seed: int = 0) -> list[str]:
    """Texts of about `lengths` tokens, of whole synthetic tickets."""
    tokenizer = open_tokenizer(model)
    sentences = [row.question for row in generate_tickets(seed)[1]]
    counts = [len(encode(tokenizer, sentence)) for sentence in sentences]
    return fill_to_lengths(sentences, counts, lengths, seed=seed)


def spread_lengths(n: int, low: int, high: int) -> list[int]:
    """`n` lengths from `low` to `high`, evenly spaced and shuffled."""
    lengths = [low + round((high - low) * i / max(1, n - 1)) for i in range(n)]
    random.Random(0).shuffle(lengths)
    return lengths


def scoring_requests(model: ModelConfig, n: int) -> list[ChoiceRequest]:
    """Prompts of about 100 to 400 tokens that share no start, so that no token is run for two rows at once."""
    builder = PromptBuilder(TaskConfig(type="choice", instruction=""), TaskFacts())
    texts = ticket_texts(model, spread_lengths(n, 65, 355))
    examples = [Example(str(i), text, choices=CHOICES) for i, text in enumerate(texts)]
    return [choice_request(e, builder.answer(e), ModelRef(model.path), builder) for e in examples]


def measure_scoring(setting: Setting) -> list[Figure]:
    """Useful FLOP/s of `score_choices` over those of the fastest matrix product in the same dtype."""
    path = write_model(SHAPES["135M"], setting.folder / "135M", dtype=torch.float32)
    model = ModelConfig(path=str(path), dtype="float32", device=setting.device)
    share, details = scoring_share(setting, SHAPES["135M"], model, n=setting.rows(128))
    note = f"{details['achieved_gflops']:.0f} of {details['ceiling_gflops']:.0f} GFLOP/s, float32"
    return [Figure("exact choice scoring, 135M: share of the matrix ceiling", share, "", 0.75, False, note, details)]


def scoring_share(setting: Setting, shape: Shape, model: ModelConfig, *, n: int) -> tuple[float, dict[str, Any]]:
    """The share over `n` rows, and what it is made of. The ceiling is measured before and after each repetition."""
    requests = scoring_requests(model, n)
    tokenizer = open_tokenizer(model)
    lengths = [len(render_prompt_ids(tokenizer, r.messages)) for r in requests]
    # Behind each prompt stand "answer" and ":"; the letter is read off the last column and not run.
    flops = forward_flops(shape, [length + 2 for length in lengths], logit_columns=3 * len(lengths))
    dtype: torch.dtype = getattr(torch, model.dtype)

    def ceiling() -> float:
        return matmul_ceiling(dtype, setting.device, clock=setting.watch.clock)

    with open_generator(TransformersGeneratorConfig(), model) as generator:
        list(generator.score_choices(requests[:8]))
        ceilings, achieved = [ceiling()], []
        for _ in range(setting.repeats):
            achieved.append(flops / setting.watch.seconds(lambda: list(generator.score_choices(requests))))
            ceilings.append(ceiling())
        peak = generator.usage.peak_memory_bytes
    around = [(a + b) / 2 for a, b in itertools.pairwise(ceilings)]
    return statistics.median(x / c for x, c in zip(achieved, around, strict=True)), {
        "rows": n,
        "mean_prompt_tokens": round(statistics.mean(lengths), 1),
        "achieved_gflops": round(statistics.median(achieved) / 1e9, 1),
        "ceiling_gflops": round(statistics.median(ceilings) / 1e9, 1),
        "peak_memory_bytes": peak,
    }


class Pool(NamedTuple):
    """Rows to be pseudo-labelled, with what their prompts are made of."""

    rows: list[tuple[Example, list[Example]]]
    """Each with its demonstrations, nearest first."""
    builder: PromptBuilder
    model: ModelConfig
    tokens: Tokens

    def prompts(self) -> list[tuple[Message, ...]]:
        """Rendered anew: that is part of what is timed."""
        limit = self.tokens.max_length - MAX_TOKENS
        return [fit_demonstrations(e, shown, self.builder, self.tokens, limit=limit)[0] for e, shown in self.rows]


def read_pool(setting: Setting) -> Pool:
    """FPB rows with their nearest labelled rows by BM25, for the Pocket LM."""
    assert setting.data is not None
    folder = setting.data / "semievol" / "fpb"
    files = {split: str(folder / f"{split}.csv") for split in ("labeled", "unlabeled", "test")}
    config = parse_config(
        {
            "output_dir": str(setting.folder / "fpb"),
            "data": {**files, "max_unlabeled": setting.rows(500)},
            "model": {"path": "pocket", "device": setting.device},
        }
    )
    loaded = load_examples(config)
    retriever = open_retriever(config.embedder, config.model)
    near = retrieve(loaded.labeled, loaded.unlabeled, retriever, k=K)
    by_id = {e.id: e for e in loaded.labeled}
    rows = [(e, [by_id[i] for i in d.demonstration_ids]) for e, d in zip(loaded.unlabeled, near, strict=True)]
    tokens = open_tokens(config.generator, config.model)
    return Pool(rows, PromptBuilder(config.task, loaded.facts), config.model, tokens)


def measure_pseudo_labels(setting: Setting) -> list[Figure]:
    """Time of the released flow's way over ours, with sampled answers and with exact scores."""
    names = ("pseudo-labelling: released way over ours, sampling", "pseudo-labelling: released way over ours, exact")
    if setting.data is None:
        return [Figure(name, None, "x", bound, note="no --data") for name, bound in zip(names, (3, 10), strict=True)]
    pool = read_pool(setting)
    works = (lambda: label_as_released(pool), lambda: label_by_samples(pool), lambda: label_by_scores(pool))
    released, sampled, scored = setting.watch.in_turns(works, setting.repeats)
    seconds = {
        "rows": len(pool.rows),
        "released_seconds": statistics.median(released),
        "sampling_seconds": statistics.median(sampled),
        "exact_seconds": statistics.median(scored),
        "max_tokens": MAX_TOKENS,
        "released_batch": BASELINE_BATCH,
        **shared_tokens(pool),
    }
    note = f"{len(pool.rows)} FPB rows, {K} demonstrations, n = {N_PASSES}, Pocket LM"
    ratios = (median_ratio(released, sampled), median_ratio(released, scored))
    return [
        Figure(name, ratio, "x", bound, False, note, seconds)
        for name, ratio, bound in zip(names, ratios, (3, 10), strict=True)
    ]


def shared_tokens(pool: Pool) -> dict[str, float]:
    """Tokens of a prompt, how many of them all prompts start with, and the share of the rest that some start with."""
    tokenizer = open_tokenizer(pool.model)
    prompts = [render_prompt_ids(tokenizer, messages) for messages in pool.prompts()]
    n_all, n_common = sum(map(len, prompts)), common_length(prompts)
    groups = group_by_start(prompts, skip=n_common)
    saved = sum((len(group.prompts) - 1) * (group.n_tokens - n_common) for group in groups)
    return {
        "mean_prompt_tokens": round(n_all / len(prompts), 1),
        "shared_by_all": n_common,
        "rest_shared_by_some": round(saved / (n_all - n_common * (len(prompts) - 1)), 3),
    }


def label_as_released(pool: Pool) -> None:
    """One `generate` call per configuration and batch, over unsorted padded batches; the model reloaded each pass.

    Log-probabilities, which the method needs, are left out, to this way's advantage.
    """
    tokenizer = open_tokenizer(pool.model)
    tokenizer.padding_side = "left"
    for _ in range(N_PASSES):
        model: Any = open_model(pool.model, ModelRef(pool.model.path))
        ends = sorted(stop_ids(tokenizer, model))
        prompts = [render_prompt(tokenizer, messages) for messages in pool.prompts()]
        for at in range(0, len(prompts), BASELINE_BATCH):
            batch = tokenizer(
                prompts[at : at + BASELINE_BATCH], add_special_tokens=False, padding=True, return_tensors="pt"
            ).to(model.device)
            written = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=MAX_TOKENS,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )
            tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def label_by_samples(pool: Pool) -> None:
    """Four samples of one request, as `propagate` asks for four equal configurations."""
    with open_generator(TransformersGeneratorConfig(), pool.model) as generator:
        requests = [
            Request(example.id, messages, ModelRef(pool.model.path), seed)
            for seed, ((example, _), messages) in enumerate(zip(pool.rows, pool.prompts(), strict=True))
        ]
        list(generator.generate(requests, Sampling(n=N_PASSES, temperature=1.0, max_tokens=MAX_TOKENS)))


def label_by_scores(pool: Pool) -> None:
    """The exact answer distribution, which four equal configurations share."""
    with open_generator(TransformersGeneratorConfig(), pool.model) as generator:
        requests = [
            choice_request(example, messages, ModelRef(pool.model.path), pool.builder)
            for (example, _), messages in zip(pool.rows, pool.prompts(), strict=True)
        ]
        list(generator.score_choices(requests))


def measure_prefill(setting: Setting) -> list[Figure]:
    """Time of n = 8 samples that each run their prompt over that of n samples of one request."""
    path = write_model(SHAPES["135M"], setting.folder / "135M", dtype=torch.float32)
    model = ModelConfig(path=str(path), dtype="float32", device=setting.device)
    tokenizer = open_tokenizer(model)
    tokenizer.padding_side = "left"
    builder = PromptBuilder(TaskConfig(type="text"), TaskFacts())
    message = builder.answer(Example("0", ticket_texts(model, [PREFILL_TOKENS - 10])[0]))
    prompt = render_prompt_ids(tokenizer, message)
    opened: Any = open_model(model, ModelRef(model.path))
    ids = torch.tensor([prompt], device=opened.device)

    def without() -> None:
        opened.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=NEW_TOKENS,
            num_return_sequences=N_SAMPLES,
            pad_token_id=tokenizer.pad_token_id,
        )

    with open_generator(TransformersGeneratorConfig(), model) as generator:

        def shared() -> None:
            request = Request("0", message, ModelRef(model.path), 0)
            list(generator.generate([request], Sampling(n=N_SAMPLES, temperature=1.0, max_tokens=NEW_TOKENS)))

        setting.watch.in_turns((without, shared), 1)
        apart, together = setting.watch.in_turns((without, shared), setting.repeats)
    note = f"prompt of {len(prompt)} tokens, {NEW_TOKENS} new ones, 135M shape; without: transformers' generate"
    details = {"without_seconds": statistics.median(apart), "with_seconds": statistics.median(together)}
    ratio = median_ratio(apart, together)
    return [Figure(f"prefill shared by {N_SAMPLES} samples: without over with", ratio, "x", 4, False, note, details)]


def sampled_tokens_per_second(setting: Setting, model: ModelConfig, *, n: int) -> float:
    """Completion tokens a second: four samples of each of `n` rows of 100 to 400 tokens."""
    builder = PromptBuilder(TaskConfig(type="text"), TaskFacts())
    texts = ticket_texts(model, spread_lengths(n, 90, 390))
    prompts = [builder.answer(Example(str(i), text)) for i, text in enumerate(texts)]
    requests = [Request(str(i), messages, ModelRef(model.path), i) for i, messages in enumerate(prompts)]
    sampling = Sampling(n=N_PASSES, temperature=1.0, max_tokens=64)
    with open_generator(TransformersGeneratorConfig(), model) as generator:
        list(generator.generate(requests[:4], sampling))
        rates = []
        for _ in range(setting.repeats):
            before = generator.usage.completion_tokens
            seconds = setting.watch.seconds(lambda: list(generator.generate(requests, sampling)))
            rates.append((generator.usage.completion_tokens - before) / seconds)
    return statistics.median(rates)
