"""Self-justification: the warm model settles disagreements, and says how sure it is of every final answer.

Reads   data/unlabeled, propagate/candidates, warmup/model (or the model of the round before; neither with
        `justify.model: base`)
        with `propagate.cascade` propagate/first_looks, propagate/asked
Writes  justify/pseudo_labels, justify/dropped; with `propagate.cascade` justify/audited

Consensus is the same parsed answer from all configurations; an unparsable answer agrees with nothing. The confidence is
H(y) = -(1/L) sum_k log P(r_k | x, r_<k) of the final answer under M_warm (arXiv:2410.14745, Eq. 6), given the question
alone; for closed answer sets it comes from the exact distribution, over the tokens in which the answers differ. Chat
APIs cannot score a given answer; `read_confidence` says what is done there. A row that a cascade settled has its
answer; its confidence is measured as that of any other.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import tee
from typing import NamedTuple

from semievol.answer_windows import cut_windows
from semievol.answering import (
    Vote,
    best_answer,
    choice_request,
    count_votes,
    entropy_of_answers,
    max_tokens,
    read_score,
    share_behind,
    wanted_top_logprobs,
)
from semievol.answers import closed_set, normal_form, parse_answer
from semievol.cascade import AuditedAnswer, FirstLook, audited_candidates, count_changes
from semievol.config import JustifyConfig, RunConfig
from semievol.pools import UNLABELED_READS, unlabeled_pool
from semievol.prompts import PromptBuilder
from semievol.stage import WINDOW, Stage, StageContext, StageStats
from semievol.types import (
    Candidates,
    ChoiceRequest,
    ChoiceScores,
    Completion,
    Dropped,
    Example,
    LabelSource,
    Message,
    ModelRef,
    PseudoLabel,
    Request,
    Sampling,
)

UNPARSABLE = "unparsable answer"
TOO_LONG = "justification prompt too long"


def needs_justification(vote: Vote, config: JustifyConfig) -> bool:
    """Whether the warm model is asked. A row without any parsed answer still is: it may know better now."""
    return config.when == "always" or (config.when == "disagree" and not vote.is_consensus)


class Draft(NamedTuple):
    """A row on its way to a pseudo-label."""

    example: Example
    candidates: Candidates
    vote: Vote


def draft_rows(ctx: StageContext, found: Iterable[Candidates], prompts: PromptBuilder) -> Iterator[Draft]:
    """Rows with their candidates; `found` is in the order of the rows."""
    examples = unlabeled_pool(ctx)
    for candidates in found:
        example = next(e for e in examples if e.id == candidates.example_id)
        yield Draft(example, candidates, count_votes(candidates.answers, prompts))


class Verdict(NamedTuple):
    """The warm model's final answer, the text it wrote and its mean NLL under the justification prompt."""

    answer: str | None
    text: str
    mean_nll: float | None
    reason: str = UNPARSABLE
    """Why the row is dropped if there is no answer."""


def judge(ctx: StageContext, drafts: list[Draft], prompts: PromptBuilder, model: ModelRef, text: str) -> list[Verdict]:
    """Show the warm model the proposed answers; greedy over a closed set is its most likely answer.

    The prompt is longer than that of the question alone, so it may be too long for rows that the data stage took.
    """
    turns = [prompts.justify(d.example, [a for a in d.candidates.answers if a is not None]) for d in drafts]
    over = [_tokens_over(ctx, t) for t in turns]
    asked = [(d, t) for d, t, n in zip(drafts, turns, over, strict=True) if not n]
    found = iter(_ask_judge(ctx, asked, prompts, model, text) if asked else ())
    return [Verdict(None, f"{n} tokens over model.max_length", None, TOO_LONG) if n else next(found) for n in over]


def _tokens_over(ctx: StageContext, turns: Sequence[Message]) -> int:
    """Tokens by which a prompt and its answer pass the model's length; 0 if they fit, or where tokens are estimated."""
    tokens = ctx.backends.tokens
    if getattr(tokens, "is_estimate", False):
        return 0
    limit = tokens.max_length - max_tokens(ctx.config, ctx.config.justify.max_tokens)
    return max(0, tokens.count_prompt(turns) - limit)


def _ask_judge(
    ctx: StageContext,
    drafts_turns: list[tuple[Draft, tuple[Message, ...]]],
    prompts: PromptBuilder,
    model: ModelRef,
    text: str,
) -> list[Verdict]:
    config = ctx.config.justify
    closed = ctx.config.task.type in ("choice", "label") and ctx.backends.generator.exact_choice_scores
    drafts, turns = [d for d, _ in drafts_turns], [t for _, t in drafts_turns]
    if closed and config.temperature == 0.0:
        requests = (choice_request(d.example, t, model, prompts) for d, t in zip(drafts, turns, strict=True))
        scored = ctx.score_choices(requests, total=len(drafts), text=text)
        return [_scored_verdict(d.example, s, prompts) for d, s in zip(drafts, scored, strict=True)]
    asked = (
        Request(d.example.id, t, model, ctx.seed("justify", d.example.id)) for d, t in zip(drafts, turns, strict=True)
    )
    sampling = Sampling(1, config.temperature, config.top_p, max_tokens(ctx.config, config.max_tokens))
    verdicts = []
    for draft, result in zip(drafts, ctx.generate(asked, sampling, total=len(drafts), text=text), strict=True):
        if result.error is not None:
            verdicts.append(Verdict(None, f"failed: {result.error}", None))
            continue
        completion = result.completions[0]
        answer = parse_answer(completion.text, draft.example, prompts.task, prompts.facts)
        nll = round(completion.mean_nll, 6) if completion.token_logprobs else None
        verdicts.append(Verdict(answer, completion.text, nll))
    return verdicts


def _scored_verdict(example: Example, scores: ChoiceScores, prompts: PromptBuilder) -> Verdict:
    answer, index = best_answer(scores, closed_set(example, prompts.task, prompts.facts))
    return Verdict(
        answer, prompts.completion(answer, example), round(-scores.logprobs[index] / scores.n_tokens[index], 6)
    )


def settle(draft: Draft, verdict: Verdict | None, prompts: PromptBuilder) -> PseudoLabel | Dropped:
    """Make the pseudo-label of one row, without its confidence; a row without a parsable answer is dropped."""
    answer = draft.vote.answer if verdict is None else verdict.answer
    if answer is None:
        detail = "no configuration gave a parsable answer" if verdict is None else verdict.text[:200]
        reason = UNPARSABLE if verdict is None else verdict.reason
        return Dropped(draft.example.id, "justify", reason, detail=detail)
    source: LabelSource = "justified"
    if verdict is None:
        source = "consensus" if draft.vote.is_consensus else "majority"
        source = "cascade" if draft.candidates.by_cascade else source
    return PseudoLabel(
        example_id=draft.example.id,
        answer=answer,
        completion=prompts.completion(answer, draft.example),
        source=source,
        agreement=round(share_behind(answer, draft.candidates.answers, prompts), 6),
        sample_entropy=round(entropy_of_answers(draft.candidates.answers, prompts), 6),
        justify_nll=None if verdict is None else verdict.mean_nll,
        justification=None if verdict is None else verdict.text,
    )


def settle_blocks(
    ctx: StageContext, drafts: Iterator[Draft], prompts: PromptBuilder, model: ModelRef, *, text: str
) -> Iterator[list[tuple[Draft, PseudoLabel | Dropped]]]:
    """Final answers, block by block, so that memory does not grow with U; what a cascade settled is not judged."""
    config, size = ctx.config.justify, max(8 * WINDOW, ctx.backends.look_ahead or 0)
    for block in cut_windows(drafts, size):
        unsure = [d for d in block if not d.candidates.by_cascade and needs_justification(d.vote, config)]
        verdicts = judge(ctx, unsure, prompts, model, text) if unsure else []
        by_id = {d.example.id: v for d, v in zip(unsure, verdicts, strict=True)}
        yield [(d, settle(d, by_id.get(d.example.id), prompts)) for d in block]


def audit_cascade(ctx: StageContext, prompts: PromptBuilder, model: ModelRef) -> Iterator[AuditedAnswer]:
    """Final answers of the audited rows with and without the cascade."""
    looks = ctx.read("propagate/first_looks", FirstLook)
    first, second = tee(audited_candidates(looks, ctx.read("propagate/asked", Candidates)))
    drafts = draft_rows(ctx, (row.candidates for row in first), prompts)
    for block in settle_blocks(ctx, drafts, prompts, model, text="self-justification, rows of the cascade's audit"):
        for (draft, full), row in zip(block, second, strict=False):  # `second` goes on with the next block
            answer = full.answer if isinstance(full, PseudoLabel) else None
            yield AuditedAnswer(draft.example.id, row.answer, answer)


def measure_confidence(
    ctx: StageContext, labels: list[tuple[Example, PseudoLabel]], prompts: PromptBuilder, model: ModelRef
) -> Iterator[PseudoLabel]:
    """Fill in the mean NLL, and entropy and probability where answers are a closed set."""
    closed = ctx.config.task.type in ("choice", "label")
    text = "confidence of the final answers"
    requests = (
        choice_request(e, prompts.answer(e), model, prompts)
        if closed
        else ChoiceRequest(e.id, prompts.answer(e), model, (label.completion,))
        for e, label in labels
    )
    for (example, label), scores in zip(labels, ctx.score_choices(requests, total=len(labels), text=text), strict=True):
        place = closed_set(example, prompts.task, prompts.facts).index(label.answer) if closed else 0
        nll = round(-scores.logprobs[place] / scores.n_tokens[place], 6)
        if closed:
            label = replace(
                label, entropy=round(scores.entropy, 6), max_probability=round(scores.probabilities[place], 6)
            )
        yield replace(label, mean_nll=nll, round=ctx.round)


def read_confidence(
    ctx: StageContext,
    labels: list[tuple[Example, PseudoLabel]],
    candidates: Mapping[str, Candidates],
    prompts: PromptBuilder,
    model: ModelRef,
) -> Iterator[PseudoLabel]:
    """The confidence of answers of a generator that only completes.

    The warm model answers the question once more, greedily. Over a closed set the alternatives at the token in which
    the answers differ give the score of the final one. An open answer has the mean NLL of this completion if it says
    the same, or else of a sample of the same model to the same prompt that does. What cannot be read stays None:
    nothing is put in the place of a log-probability.
    """
    generator, plain = ctx.backends.generator, f"{ctx.config.justify.model}-0"  # the prompt of confidence
    if not generator.gives_logprobs:
        yield from (replace(label, round=ctx.round) for _, label in labels)
        return
    top = wanted_top_logprobs(ctx.config, generator)
    sampling = Sampling(1, 0.0, 1.0, max_tokens(ctx.config, ctx.config.justify.max_tokens), top)
    requests = (Request(e.id, prompts.answer(e), model) for e, _ in labels)
    results = ctx.generate(requests, sampling, total=len(labels), text="confidence of the final answers")
    for (example, label), result in zip(labels, results, strict=True):
        seen = candidates[example.id]
        samples = [c for c, name in zip(seen.completions, seen.config_names, strict=True) if name == plain]
        yield replace(_read_label(example, label, [*result.completions, *samples], prompts), round=ctx.round)


def _read_label(
    example: Example, label: PseudoLabel, completions: Sequence[Completion], prompts: PromptBuilder
) -> PseudoLabel:
    """Measure a label by what the warm model said to the plain prompt, the greedy completion first."""
    if prompts.task.type in ("choice", "label"):
        score = read_score(example, label.answer, completions[0], prompts) if completions else None
        if score is None:
            return label
        return replace(
            label,
            mean_nll=round(score.nll, 6),
            entropy=None if score.entropy is None else round(score.entropy, 6),
            max_probability=None if score.probability is None else round(score.probability, 6),
        )
    form = normal_form(label.answer, prompts.task)
    for completion in completions:
        answer = parse_answer(completion.text, example, prompts.task, prompts.facts)
        if answer is not None and normal_form(answer, prompts.task) == form and completion.token_logprobs:
            return replace(label, mean_nll=round(completion.mean_nll, 6))
    return label


def run(ctx: StageContext) -> StageStats:
    """Settle, measure, write."""
    prompts = ctx.prompts()
    model = ctx.warm_model() if ctx.config.justify.model == "warm" else ctx.base_model
    dropped = ctx.spool(Dropped)
    stats: Counter[str] = Counter()

    def labels() -> Iterator[PseudoLabel]:
        drafts = draft_rows(ctx, ctx.read("propagate/candidates", Candidates), prompts)
        for block in settle_blocks(ctx, drafts, prompts, model, text="self-justification"):
            for _, outcome in block:
                if isinstance(outcome, Dropped):
                    dropped.append(replace(outcome, round=ctx.round))
            found = [(d.example, s) for d, s in block if isinstance(s, PseudoLabel)]
            if ctx.backends.generator.exact_choice_scores:
                measured = measure_confidence(ctx, found, prompts, model)
            else:
                measured = read_confidence(ctx, found, {d.example.id: d.candidates for d, _ in block}, prompts, model)
            for label in measured:
                stats[f"n_{label.source}"] += 1
                if label.mean_nll is None:
                    stats["n_unmeasured"] += 1
                yield label

    n = ctx.write("justify/pseudo_labels", labels(), PseudoLabel)
    ctx.write("justify/dropped", dropped, Dropped)
    found: StageStats = {"n_rows": n, "n_dropped": len(dropped), "n_consensus": 0, "n_justified": 0, **stats}
    if ctx.config.propagate.cascade is not None:
        ctx.write("justify/audited", audit_cascade(ctx, prompts, model), AuditedAnswer)
        answers = ctx.run_dir.read_records(ctx.artifact("justify/audited"), AuditedAnswer)
        found["cascade"] = count_changes(answers, ctx.config.task)
    return found


def unused_artifacts(config: RunConfig) -> tuple[str, ...]:
    """Trained models that are not asked, and what only a cascade leaves."""
    models = () if config.justify.model == "warm" else ("warmup/model", "evolve/model")
    return models if config.propagate.cascade is not None else (*models, "propagate/first_looks", "propagate/asked")


STAGE = Stage(
    "justify",
    reads=(
        *UNLABELED_READS,
        "propagate/candidates",
        "propagate/first_looks",
        "propagate/asked",
        "warmup/model",
        "evolve/model",
        "data/task",
    ),
    writes=("justify/pseudo_labels", "justify/dropped", "justify/audited"),
    sections=("task", "model", "generator", "justify", "seed"),
    run=run,
    unused=unused_artifacts,
)
