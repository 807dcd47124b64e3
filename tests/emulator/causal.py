"""An engine with a real causal language model: it samples, it gives raw log-probabilities, and it really learns.

Prompts and training rows are tokenised by the package's own `backends.hf`; sampling and training are plain torch loops
of their own, so that they can disagree with the package where it is wrong.
"""

import copy
import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from semievol.backends import hf
from semievol.backends.caches import find_cache_name
from semievol.config import ModelConfig
from semievol.errors import ConfigError
from semievol.types import Message, ModelRef
from tests.emulator.engine import Answer, Chat, ServedModel, Token, Trained, Training, cut_at_stop
from tests.emulator.errors import wrong_value

LEARNING_RATE = 3e-4
"""Of AdamW in the first step at a learning_rate_multiplier of 1; it falls linearly to 0."""
DEFAULT_MAX_TOKENS = 256
EMBEDDING_MODEL = "text-embedding-3-small"


class CausalEngine:
    """Serves the model in `path` (a folder, a hub id or `pocket`) as `name`, and its hidden states as embeddings."""

    blocking = True

    def __init__(self, name: str, path: str) -> None:
        config = ModelConfig(path=path, device="cpu", dtype="float32")
        hf.quiet_loading()
        self._tokenizer = hf.open_tokenizer(config)
        model: Any = hf.open_model(config, ModelRef(path))
        self._max_length = hf.resolve_max_length(config)
        self._stops = hf.stop_ids(self._tokenizer, model)
        embedder = ServedModel(EMBEDDING_MODEL, dimension=model.config.get_text_config().hidden_size)
        self._base = {name: ServedModel(name, tunable=True), EMBEDDING_MODEL: embedder}
        self._served = dict(self._base)
        self._weights = {name: model, EMBEDDING_MODEL: model}
        self._lock = threading.Lock()

    def models(self) -> Mapping[str, ServedModel]:
        """What is served, by id."""
        return self._served

    def complete(self, model: ServedModel, chat: Chat) -> tuple[list[Answer], int]:
        """Sample `n` completions side by side, each from its own seed."""
        try:
            prompt = hf.render_prompt_ids(self._tokenizer, chat.messages)
        except ConfigError as error:
            raise wrong_value("messages", str(error), None) from error
        room = self._max_length - len(prompt)
        if room < (chat.max_tokens or 1):
            message = (
                f"This model's maximum context length is {self._max_length} tokens, and the messages have "
                f"{len(prompt)} with {chat.max_tokens} asked for."
            )
            raise wrong_value("messages", message, "context_length_exceeded")
        max_tokens = chat.max_tokens or min(room, DEFAULT_MAX_TOKENS)
        with self._lock, torch.inference_mode():
            drawn = self._sample(self._weights[model.id], prompt, chat, max_tokens)
        return [cut_at_stop(self._answer(tokens), chat.stop) for tokens in drawn], len(prompt)

    def embed(self, model: ServedModel, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """Means of the last hidden states, cut to the dimension asked for, made length 1."""
        vectors, n_tokens = [], 0
        with self._lock, torch.inference_mode():
            for text in texts:
                ids = hf.encode(self._tokenizer, text)[: self._max_length]
                n_tokens += len(ids)
                states = self._weights[EMBEDDING_MODEL](torch.tensor([ids]), output_hidden_states=True).hidden_states
                vectors.append(functional.normalize(states[-1][0].mean(0)[: model.dimension], dim=0).tolist())
        return vectors, n_tokens

    def train(self, training: Training) -> Trained:
        """Train all weights of a copy with AdamW, the loss on assistant turns alone."""
        rows = [row for chat in training.chats for row in self._rows(chat)]
        with self._lock, torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            model = copy.deepcopy(self._weights[training.parent.id]).train()
            losses, checkpoints = self._train(model, rows, training)
        served = replace(training.parent, id=training.model_id, parent=training.parent.id)
        self._weights[served.id], self._served[served.id] = model.eval(), served
        return Trained(served, losses, training.n_epochs * sum(len(ids) for ids, _ in rows), checkpoints)

    def forget(self) -> None:
        """Drop what was fine-tuned."""
        self._served = dict(self._base)
        self._weights = {name: self._weights[name] for name in self._base}

    def _sample(self, model: Any, prompt: list[int], chat: Chat, max_tokens: int) -> list[list["_Drawn"]]:
        """What each sample drew, the stop token included; log-probabilities are the model's raw ones."""
        draws = [torch.Generator().manual_seed(_seed(chat.seed, i)) for i in range(chat.n)]
        drawn: list[list[_Drawn]] = [[] for _ in draws]
        ids, cache = torch.tensor([prompt] * chat.n), {}
        bias = torch.zeros(model.config.get_text_config().vocab_size)
        for token, value in chat.logit_bias.items():
            bias[token] = value
        for _ in range(max_tokens):
            out = model(input_ids=ids, use_cache=True, **cache)
            cache = {(name := find_cache_name(out)): out[name]}
            raw = out.logits[:, -1].float().log_softmax(-1)
            step = [_draw(raw[i] + bias, chat.temperature, chat.top_p, g) for i, g in enumerate(draws)]
            for row, token, logprobs in zip(drawn, step, raw, strict=True):
                if not row or row[-1].token not in self._stops:
                    top = logprobs.topk(chat.top_logprobs)
                    entries = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
                    row.append(_Drawn(token, float(logprobs[token]), entries))
            if all(row[-1].token in self._stops for row in drawn):
                break
            ids = torch.tensor(step)[:, None]
        return drawn

    def _answer(self, drawn: Sequence["_Drawn"]) -> Answer:
        stopped = drawn[-1].token in self._stops
        tokens, ids, before = [], [], ""
        for token, logprob, top in drawn[: len(drawn) - stopped]:
            others = tuple((self._piece(ids, before, i), lp) for i, lp in top)
            tokens.append(Token(self._piece(ids, before, token), logprob, others))
            ids.append(token)
            before = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(tuple(tokens), "stop" if stopped else "length")

    def _piece(self, ids: list[int], before: str, token: int) -> str:
        """What `token` adds to the text `before` of `ids`: with WordPiece the space stands between tokens, in none."""
        text = self._tokenizer.decode([*ids, token], skip_special_tokens=True)
        return text[len(before) :] if text.startswith(before) else self._tokenizer.decode([token])

    def _rows(self, chat: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], int]]:
        """(token ids, where the completion begins) of every assistant turn whose weight is not 0."""
        turns = [Message(t["role"], t["content"]) for t in chat]
        rows = []
        for i, turn in enumerate(turns):
            if turn.role == "assistant" and chat[i].get("weight", 1) != 0:
                prompt = hf.render_prompt_ids(self._tokenizer, turns[:i])
                ids = [*prompt, *hf.completion_ids(self._tokenizer, turns[:i], turn.content)]
                rows.append((ids[: self._max_length], len(prompt)))
        return rows

    def _train(
        self, model: Any, rows: list[tuple[list[int], int]], training: Training
    ) -> tuple[tuple[tuple[int, float], ...], tuple[tuple[int, ServedModel], ...]]:
        rate = LEARNING_RATE * training.learning_rate_multiplier
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        n_steps = training.n_epochs * -(-len(rows) // training.batch_size)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=n_steps)
        losses: list[tuple[int, float]] = []
        checkpoints: list[tuple[int, ServedModel]] = []
        weights = {}
        for _ in range(training.n_epochs):
            order = torch.randperm(len(rows)).tolist()
            for at in range(0, len(rows), training.batch_size):
                if training.halted.is_set():
                    raise InterruptedError(training.model_id)
                ids, mask, labels = _pad([rows[i] for i in order[at : at + training.batch_size]])
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append((len(losses) + 1, round(loss.item(), 6)))
            name = f"{training.model_id}:ckpt-step-{len(losses)}"
            served = replace(training.parent, id=name, parent=training.parent.id)
            checkpoints.append((len(losses), served))
            weights[name] = copy.deepcopy(model).eval()
        self._weights |= weights
        self._served |= {served.id: served for _, served in checkpoints}
        return tuple(losses), tuple(checkpoints)


class _Drawn(NamedTuple):
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def _draw(logprobs: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logprobs.argmax())
    p = (logprobs / temperature).softmax(-1)
    if top_p < 1:
        ordered, at = p.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered > top_p] = 0
        p = torch.zeros_like(p).scatter(0, at, ordered)
    return int(torch.multinomial(p, 1, generator=generator))


def _seed(seed: int, sample: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{sample}".encode(), digest_size=7).digest(), "little")


def _pad(rows: Sequence[tuple[list[int], int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels, padded on the right; -100 carries no loss."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row, start) in enumerate(rows):
        ids[i, : len(row)] = labels[i, : len(row)] = torch.tensor(row)
        labels[i, :start] = -100
        mask[i, : len(row)] = 1
    return ids, mask, labels
