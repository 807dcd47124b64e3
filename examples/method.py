"""The whole method in one file, with the library's pieces and without its stages.

    python examples/method.py            # some minutes on 2 CPU cores

It routes the synthetic support tickets of `semievol demo` with the embedded Pocket LM. Read it from top to bottom: it
is section 3 of the paper (arXiv:2410.14745). For a run that resumes, is audited and ends in a report, use
`semievol run`.
"""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from semievol.answering import best_answer, choice_request, predict_exactly
from semievol.answers import closed_set, parse_answer
from semievol.backends.base import Generator, open_generator, open_retriever, open_trainer
from semievol.config import parse_config
from semievol.demo.tickets import QUEUES, generate_tickets
from semievol.demonstrations import retrieve
from semievol.metrics import paired_difference
from semievol.prompts import PromptBuilder
from semievol.sft import build_sft_rows
from semievol.stages.select import find_threshold
from semievol.types import ChoiceScores, Example, ModelRef, Request, Sampling, TaskFacts, choice_letter

CONFIG = parse_config(
    {
        "data": {"labeled": "-", "unlabeled": "-"},  # rows come from code here
        "embedder": {"type": "sentence_transformers"},
        "trainer": {
            "method": "full",
            "learning_rate": 3e-4,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "max_length": 512,
        },
    }
)
SEED = 0


def main() -> None:
    """Split, warm up, propagate, justify, select, evolve, compare."""
    labeled, unlabeled, test = ([as_example(row) for row in rows] for rows in generate_tickets(SEED))
    unlabeled = [replace(e, target=None) for e in unlabeled]  # their queues are not ours to see
    prompts = PromptBuilder(CONFIG.task, TaskFacts(shared_choices=QUEUES))
    base = ModelRef(CONFIG.model.path)

    with tempfile.TemporaryDirectory() as folder:
        warm = train(base, labeled, prompts, Path(folder) / "warm")
        with open_generator(CONFIG.generator, CONFIG.model) as generator:
            answers = propagate(labeled, unlabeled, prompts, {"base": base, "warm": warm}, generator)
            final = justify(unlabeled, answers, prompts, warm, generator)
            nll = confidence(unlabeled, final, prompts, warm, generator)
        tau = find_threshold(nll, CONFIG.select).uncertainty
        selected = [replace(e, target=a) for e, a, h in zip(unlabeled, final, nll, strict=True) if h <= tau]
        evolved = train(base, labeled + selected, prompts, Path(folder) / "evolved")
        with open_generator(CONFIG.generator, CONFIG.model) as generator:
            scores = {
                name: evaluate(test, prompts, model, generator)
                for name, model in (("SFT", warm), ("SemiEvol", evolved))
            }

    for name, correct in scores.items():
        print(f"{name:<10}{sum(correct) / len(correct):.3f}")
    gain = paired_difference(scores["SemiEvol"], scores["SFT"], n_bootstrap=2000, seed=SEED)
    print(f"difference {gain.difference:+.3f} [{gain.ci_low:+.3f}, {gain.ci_high:+.3f}], kept {len(selected)} rows")


def as_example(row) -> Example:
    """A ticket as a lettered question."""
    target = choice_letter(QUEUES.index(row.target)) if row.target in QUEUES else None
    return Example(row.id, row.question, choices=QUEUES, target=target)


def train(model: ModelRef, rows: list[Example], prompts: PromptBuilder, folder: Path) -> ModelRef:
    """Fine-tune: M_warm from L, and M_evol from L and the selected rows."""
    trainer = open_trainer(CONFIG.trainer, CONFIG.model)
    return trainer.fit(model, build_sft_rows(rows, prompts), folder, config=CONFIG.trainer, seed=SEED).model


def propagate(
    labeled: list[Example],
    unlabeled: list[Example],
    prompts: PromptBuilder,
    models: dict[str, ModelRef],
    generator: Generator,
) -> list[list[str | None]]:
    """N configurations, members of {base, warm} x {0..3 demonstrations}, answer every row at T = 1."""
    by_id = {e.id: e for e in labeled}
    near = list(retrieve(labeled, unlabeled, open_retriever(CONFIG.embedder, CONFIG.model), k=CONFIG.retrieve.k))
    requests = [
        Request(
            f"{e.id}/{i}", prompts.answer(e, [by_id[j] for j in n.demonstration_ids[: c.k]]), models[c.model], seed=i
        )
        for e, n in zip(unlabeled, near, strict=True)
        for i, c in enumerate(CONFIG.propagate.configurations)
    ]
    texts = {
        r.id: r.completions[0].text for r in generator.generate(requests, Sampling(temperature=1.0, max_tokens=16))
    }
    slots = range(len(CONFIG.propagate.configurations))
    return [[parse_answer(texts[f"{e.id}/{i}"], e, prompts.task, prompts.facts) for i in slots] for e in unlabeled]


def justify(
    unlabeled: list[Example],
    answers: list[list[str | None]],
    prompts: PromptBuilder,
    warm: ModelRef,
    generator: Generator,
) -> list[str]:
    """Where the configurations disagree, the warm model sees their answers and decides."""
    open_rows = [
        choice_request(e, prompts.justify(e, [a for a in given if a is not None]), warm, prompts)
        for e, given in zip(unlabeled, answers, strict=True)
        if None in given or len(Counter(given)) > 1
    ]
    settled = {s.id: best_letter(s) for s in generator.score_choices(open_rows)}
    return [settled.get(e.id) or given[0] for e, given in zip(unlabeled, answers, strict=True)]


def confidence(
    unlabeled: list[Example], final: list[str], prompts: PromptBuilder, warm: ModelRef, generator: Generator
) -> list[float]:
    """H of Eq. 6: mean NLL of the final answer under the warm model, given the question alone."""
    requests = [choice_request(e, prompts.answer(e), warm, prompts) for e in unlabeled]
    scores = {s.id: s for s in generator.score_choices(requests)}
    places = [closed_set(e, prompts.task, prompts.facts).index(a) for e, a in zip(unlabeled, final, strict=True)]
    return [-scores[e.id].logprobs[i] / scores[e.id].n_tokens[i] for e, i in zip(unlabeled, places, strict=True)]


def evaluate(test: list[Example], prompts: PromptBuilder, model: ModelRef, generator: Generator) -> list[float]:
    """1.0 for every test row whose most likely answer is right."""
    predictions = predict_exactly(test, prompts, model, lambda requests: by_request(generator, list(requests)))
    return [float(p.answer == e.target) for p, e in zip(predictions, test, strict=True)]


def by_request(generator: Generator, requests: list):
    """Scores in the order of the requests; backends answer in any order."""
    scores = {s.id: s for s in generator.score_choices(requests)}
    return (scores[r.id] for r in requests)


def best_letter(scores: ChoiceScores) -> str:
    """The most likely option."""
    return best_answer(scores, [choice_letter(i) for i in range(len(QUEUES))])[0]


if __name__ == "__main__":
    main()
