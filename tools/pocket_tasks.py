"""Training episodes of the Pocket LM: many small tasks, each shown as the prompt that the product renders.

An episode is one chat: an instruction, 0 to 6 demonstrations, a question and the answer. The tasks come from
`pretrain_tasks/*.jsonl` and, without end, from prose (which passage does a sentence come from, which word is missing,
which sentence follows). Option order, label names and the layout change from episode to episode, so that the
demonstrations are often the only place where the meaning of a label can be read.

Everything is tokenised once; an episode is put together from token ids, which equals tokenising the rendered text
because WordPiece splits at white space (`check_layout` compares with `semievol.prompts`).
"""

import json
import lzma
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol.config import TaskConfig
from semievol.prompts import INSTRUCTIONS, PromptBuilder
from semievol.types import Example, TaskFacts

MAX_LENGTH = 512
CLS, SEP = 101, 102
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CORPORA = ("openstax", "novels", "handbooks", "proposals", "dialogues", "factbook", "children")
ONE_BLANK_LINE = {"dialogues", "factbook"}  # documents are apart by one empty line there, by two elsewhere
WINDOW_SENTENCES = 24
HELD_OUT_SHARE = 0.01

CHOICE_INSTRUCTIONS = (
    INSTRUCTIONS["choice"],
    "Choose the right option.",
    "Pick the option that fits best. Reply with its letter.",
    "Which option is correct? Answer with the letter only.",
    "Select the correct answer from the options below.",
    "Read the question and choose one of the options.",
    "Classify the text. Reply with the letter of the class.",
    "You are a careful classifier. Give the letter of the best option.",
    "Assign the text to one of the following categories.",
    "Answer the multiple choice question with a single letter.",
    "Decide which category the message belongs to.",
    "Choose the best answer.",
    "Below are questions with options. Answer the last one.",
    "Use the examples to answer the last question. Reply with a letter.",
    "Please give the letter of the right answer and nothing else.",
    "What is the right label for this text? Choose a letter.",
    "Determine the class of the sentence.",
    "Sort the text into one of these groups.",
    'Answer in the form "Answer: X".',
    "The following is a classification task.",
)
LABEL_INSTRUCTIONS = (
    INSTRUCTIONS["label"],
    "Classify the text.",
    "Choose one of the labels.",
    "Reply with the label that describes the text.",
    "Assign the right label. Do not explain.",
    "Which label fits the message?",
    "Label the sentence with one of the following.",
    "Give the category of the text.",
)
SPAN_INSTRUCTIONS = (INSTRUCTIONS["span"], "Answer the question.", "Reply in a few words.", "Follow the examples.")
NUMBER_INSTRUCTIONS = (INSTRUCTIONS["number"], "Reply with a number.", "Compute the result.")
TASK_INSTRUCTIONS = {
    "intent": (
        "What does the user want?",
        "Classify the intent of the customer's message.",
        "Choose the intent of the request.",
    ),
    "spam": ("Is this text message spam?", "Classify the SMS."),
    "sentiment": (
        "What is the sentiment of the text?",
        "Classify the sentiment of the sentence.",
        "Decide whether the text is good news, bad news or neither.",
    ),
    "passage": (
        "Which passage does the sentence come from?",
        "Choose the topic of the sentence.",
        "What is the text about?",
    ),
}
STEMS = {
    "intent": ("Classify the intent:", "What is the intent of this message?", "Customer:"),
    "spam": ("Message:", "Classify this message:"),
    "sentiment": ("What is the sentiment of the following sentence?", "Judge the sentiment of the text:", "Review:"),
    "passage": ("Which topic fits this sentence?", "Text:", "Sentence:"),
}
MIXTURES = {  # share of the episodes by kind of task
    "broad": {
        "stream": 0.10,
        "pool": 0.35,
        "prose_pool": 0.25,
        "lookup": 0.10,
        "choice": 0.06,
        "cloze": 0.03,
        "next_sentence": 0.03,
        "yes_no": 0.03,
        "number": 0.05,
    },
    # what a small budget can learn: short questions, most of them with demonstrations that tell the answer
    "focused": {"stream": 0.45, "pool": 0.41, "prose_pool": 0.03, "lookup": 0.08, "choice": 0.01, "number": 0.02},
}
_FOCUSED_SOURCES = ("hwu64", "snips", "sms spam", "imdb", "commonsense_qa", "passages of prose as classification rows")
SOURCES = {"broad": (*_FOCUSED_SOURCES, "strategy_qa", "prose"), "focused": _FOCUSED_SOURCES}
JUSTIFY_LINE = "Decide which answer is right."


class Pieces:
    """Token ids of short texts, each tokenised once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        ids = self._ids.get(text)
        if ids is None:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            self._ids[text] = ids
        return ids


@dataclass
class Sentences:
    """Ragged token ids: row i is `flat[offsets[i]:offsets[i + 1]]`."""

    flat: NDArray[np.uint16]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int, max_tokens: int) -> list[int]:
        """Token ids of one row, cut at `max_tokens`."""
        start = int(self.offsets[index])
        return self.flat[start : min(int(self.offsets[index + 1]), start + max_tokens)].tolist()


@dataclass
class LabelPool:
    """A classification data set. `members[c]` are the rows of class c."""

    name: str
    kind: str
    texts: Sentences
    vectors: NDArray[np.float16]
    members: list[NDArray[np.int64]]
    label_names: list[list[int]]


@dataclass
class Tasks:
    """All that episodes are made of."""

    pools: list[LabelPool]
    prose_pools: list[LabelPool]
    choice_rows: list[tuple[list[int], list[list[int]], int]]
    yes_no_rows: list[tuple[list[int], int]]
    documents: Sentences
    held_out: Sentences
    words: list[int]


@dataclass(frozen=True)
class Episode:
    """Token ids and, for each, whether predicting it is trained."""

    ids: list[int]
    trained: list[int]


# -- preparing --------------------------------------------------------------------------------------------------------


def load_tasks(
    shared: Path, cache: Path, tokenizer: Any, word_vectors: NDArray[np.float32], max_corpus_chars: int
) -> Tasks:
    """Reads and tokenises all sources; keeps the tokens under `cache`, keyed by the amount of prose."""
    pretrain = shared / "data" / "pretrain_tasks"
    rows = {
        path.stem: [json.loads(line) for line in path.open(encoding="utf-8")]
        for path in sorted(pretrain.glob("*.jsonl"))
    }
    prose = {name: load_prose(shared, cache, name, tokenizer, max_corpus_chars) for name in CORPORA}
    frequency = np.ones(len(word_vectors))
    for document_sentences, _, _, _ in prose.values():
        frequency += np.bincount(document_sentences.flat, minlength=len(word_vectors))
    weights = np.log(frequency.sum() / frequency).astype(np.float32)
    weights = np.clip(weights - 4.0, 0.0, 8.0)
    weighted = (word_vectors - word_vectors.mean(0)) * weights[:, None]

    prose_pools = []
    for name, (sentences, windows, _, _) in prose.items():
        members = [np.arange(a, b) for a, b in windows]
        label_names = [_keywords(sentences, m, frequency, tokenizer) for m in members]
        kept = [i for i, label in enumerate(label_names) if label]
        prose_pools.append(
            LabelPool(
                name,
                "passage",
                sentences,
                _vectors(sentences, weighted),
                [members[i] for i in kept],
                [label_names[i] for i in kept],
            )
        )
    neutral = [prose[name][0] for name in ("openstax", "handbooks", "factbook")]
    pools = [
        _label_pool("hwu64", "intent", rows["hwu64_intent"], tokenizer, weighted),
        _label_pool("snips", "intent", rows["snips_intent"], tokenizer, weighted),
        _label_pool("sms", "spam", rows["sms_spam"], tokenizer, weighted),
        _label_pool("imdb", "sentiment", rows["imdb_sentiment"], tokenizer, weighted),
        _sentiment_pool(rows["imdb_sentiment"], neutral, tokenizer, weighted),
    ]
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    choice_rows = [
        (ids(row["text"]), [ids(choice) for choice in row["choices"]], row["choices"].index(row["answer"]))
        for row in rows["commonsense_qa"]
    ]
    yes_no_rows = [(ids(row["text"]), int(row["answer"] == "yes")) for row in rows["strategy_qa"]]
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(word_vectors))))
    words = [i for i, token in enumerate(vocabulary) if i > 1996 and re.fullmatch(r"[a-z]{3,9}", token)]
    return Tasks(
        pools,
        prose_pools,
        choice_rows,
        yes_no_rows,
        _concatenate([p[2] for p in prose.values()]),
        _concatenate([p[3] for p in prose.values()]),
        words,
    )


def load_prose(
    shared: Path, cache: Path, name: str, tokenizer: Any, max_chars: int
) -> tuple[Sentences, NDArray[np.int64], Sentences, Sentences]:
    """Sentences, windows (n, 2) of them, documents for training, documents held out."""
    path = cache / f"{name}-{max_chars}.npz"
    if not path.exists():
        with lzma.open(shared / "corpora" / f"{name}.txt.xz", "rt", encoding="utf-8") as file:
            text = file.read(max_chars) if max_chars else file.read()
        separator = "\n\n" if name in ONE_BLANK_LINE else "\n\n\n"
        documents = [d for d in text.split(separator) if len(d) > 200]
        parts = [piece for d in documents for piece in _cut(d, 20_000)]
        held = [zlib.crc32(p[:200].encode()) % 1000 < HELD_OUT_SHARE * 1000 for p in parts]
        training = [p for p, out in zip(parts, held, strict=True) if not out]
        sentences: list[str] = []
        windows = []
        for part in training:
            found = [s for line in part.split("\n") for s in re.split(r"(?<=[.!?])\s+", line) if 40 <= len(s) <= 300]
            for start in range(0, len(found) - 7, WINDOW_SENTENCES):
                window = found[start : start + WINDOW_SENTENCES]
                if len(window) >= 8:
                    windows.append((len(sentences), len(sentences) + len(window)))
                    sentences.extend(window)
        made = [
            _tokenise(texts, tokenizer)
            for texts in (sentences, training, [p for p, o in zip(parts, held, strict=True) if o])
        ]
        cache.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{key}{i}": value for i, s in enumerate(made) for key, value in (("flat", s.flat), ("offsets", s.offsets))
        }
        with (cache / f"{path.name}.part").open("wb") as file_out:
            np.savez(file_out, windows=np.array(windows, dtype=np.int64).reshape(-1, 2), **arrays)
        (cache / f"{path.name}.part").replace(path)
    with np.load(path) as stored:
        made = [Sentences(stored[f"flat{i}"], stored[f"offsets{i}"]) for i in range(3)]
        return made[0], stored["windows"], made[1], made[2]


def _cut(text: str, size: int) -> Iterator[str]:
    """Parts of about `size` characters that end at a line end."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + size)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _tokenise(texts: list[str], tokenizer: Any) -> Sentences:
    lengths, parts = [0], []
    for start in range(0, len(texts), 2000):
        for ids in tokenizer(texts[start : start + 2000], add_special_tokens=False)["input_ids"]:
            parts.append(np.array(ids, dtype=np.uint16))
            lengths.append(len(ids))
    flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)
    return Sentences(flat, np.cumsum(lengths, dtype=np.int64))


def _concatenate(parts: Sequence[Sentences]) -> Sentences:
    lengths = np.concatenate([np.diff(p.offsets) for p in parts])
    return Sentences(np.concatenate([p.flat for p in parts]), np.concatenate([[0], np.cumsum(lengths)]))


def _vectors(texts: Sentences, weighted: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rarity-weighted mean word vectors of length 1, (n, d): a cheap stand-in for a sentence encoder."""
    out = np.zeros((len(texts), weighted.shape[1]), dtype=np.float16)
    for i in range(len(texts)):
        vector = weighted[texts.flat[texts.offsets[i] : texts.offsets[i + 1]]].sum(0)
        out[i] = vector / (np.linalg.norm(vector) + 1e-6)
    return out


def _keywords(
    sentences: Sentences, members: NDArray[np.int64], frequency: NDArray[np.float64], tokenizer: Any
) -> list[int]:
    """One or two words that stand out in a passage: its label name. Empty where none does."""
    start, end = int(sentences.offsets[members[0]]), int(sentences.offsets[members[-1] + 1])
    ids, counts = np.unique(sentences.flat[start:end], return_counts=True)
    whole = ids > 1996
    score = np.where(whole & (counts >= 2), counts * np.log(frequency.sum() / frequency[ids]), 0.0)
    best = [int(ids[i]) for i in np.argsort(-score)[:6] if score[i] > 0]
    tokens = {i: tokenizer.convert_ids_to_tokens(i) for i in best}
    names = [i for i in best if re.fullmatch(r"[a-z]{4,}", tokens[i]) and tokens[i] not in ("user", "assistant")]
    return names[: 1 + len(members) % 2]


def _label_pool(
    name: str, kind: str, rows: list[dict[str, Any]], tokenizer: Any, weighted: NDArray[np.float32]
) -> LabelPool:
    texts = _tokenise([row["text"].replace("<br />", " ") for row in rows], tokenizer)
    labels = sorted({row["answer"] for row in rows})
    answers = np.array([labels.index(row["answer"]) for row in rows])
    names = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
    members = [np.flatnonzero(answers == c) for c in range(len(labels))]
    kept = [c for c in range(len(labels)) if len(members[c]) >= 4]
    return LabelPool(name, kind, texts, _vectors(texts, weighted), [members[c] for c in kept], [names[c] for c in kept])


def _sentiment_pool(
    reviews: list[dict[str, Any]], neutral: Sequence[Sentences], tokenizer: Any, weighted: NDArray[np.float32]
) -> LabelPool:
    """Sentences of reviews with the review's sentiment, and sentences of factual prose as neutral."""
    texts, labels = [], []
    for row in reviews:
        for sentence in re.split(r"(?<=[.!?])\s+", row["text"].replace("<br />", " ")):
            if 40 <= len(sentence) <= 300:
                texts.append(sentence)
                labels.append(0 if row["answer"] == "negative" else 2)
    parts = [_tokenise(texts, tokenizer)]
    for sentences in neutral:
        count = min(2500, len(sentences))
        end = sentences.offsets[count]
        parts.append(Sentences(sentences.flat[:end], sentences.offsets[: count + 1]))
        labels.extend([1] * count)
    joined = _concatenate(parts)
    names = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in ("negative", "neutral", "positive")]
    members = [np.flatnonzero(np.array(labels) == c) for c in range(3)]
    return LabelPool("sentiment3", "sentiment", joined, _vectors(joined, weighted), members, names)


# -- episodes ---------------------------------------------------------------------------------------------------------


@dataclass
class Block:
    """A question of an episode: its own options where they are not shared, and its answer."""

    question: list[int]
    options: list[list[int]] | None
    answer: list[int]
    trained: bool = True


class EpisodeSource:
    """Draws episodes; the same seed gives the same ones."""

    def __init__(self, tasks: Tasks, tokenizer: Any, seed: int, mixture: str) -> None:
        self.tasks = tasks
        self.piece = Pieces(tokenizer)
        self.random = random.Random(seed)
        self._kinds = MIXTURES[mixture]
        self._mixture = mixture

    def __iter__(self) -> Iterator[Episode]:
        while True:
            kind = self.random.choices(list(self._kinds), list(self._kinds.values()))[0]
            episode: Episode | None = getattr(self, f"_{kind}")()
            if episode is not None and len(episode.ids) <= MAX_LENGTH:
                yield episode

    def prose(self, length: int, trained_share: float) -> Episode:
        """A stretch of a document, of which a share of the tokens is trained."""
        documents = self.tasks.documents
        while True:
            row = self.random.randrange(len(documents))
            size = int(documents.offsets[row + 1] - documents.offsets[row])
            if size > 32:
                start = int(documents.offsets[row]) + self.random.randrange(max(1, size - length))
                end = min(start + length - 1, int(documents.offsets[row + 1]))
                ids = [CLS, *documents.flat[start:end].tolist()]
                return Episode(ids, [0, *(int(self.random.random() < trained_share) for _ in ids[1:])])

    # one method a kind of task

    def _pool(self) -> Episode | None:
        pool = self.random.choices(self.tasks.pools, (5, 2, 1, 1, 4))[0]
        return self._classification(
            pool, self.random.sample(range(len(pool.members)), self._n_classes(len(pool.members)))
        )

    def _prose_pool(self) -> Episode | None:
        pool = self.random.choices(self.tasks.prose_pools, (5, 3, 2, 2, 3, 1, 0.5))[0]
        n = self._n_classes(10)
        if len(pool.members) < 3 * n:
            return None
        if self.random.random() < 0.15:  # near passages: harder to tell apart
            start = self.random.randrange(len(pool.members) - 3 * n)
            return self._classification(pool, self.random.sample(range(start, start + 3 * n), n))
        return self._classification(pool, self.random.sample(range(len(pool.members)), n))

    def _n_classes(self, most: int) -> int:
        return min(most, self.random.choices(range(2, 11), (2, 5, 4, 3, 2, 2, 2, 2, 4))[0])

    def _classification(self, pool: LabelPool, classes: list[int]) -> Episode | None:
        rng = self.random
        per_class = rng.randint(3, 10)
        rows: list[tuple[int, int]] = []
        for position, c in enumerate(classes):
            members = pool.members[c]
            count = min(len(members), max(2, round(per_class * rng.choice((0.5, 1, 1, 1, 2)))))
            rows.extend((int(members[i]), position) for i in rng.sample(range(len(members)), count))
        query = rows.pop(rng.randrange(len(rows)))
        naming = rng.choices(("real", "nonsense", "permuted"), (0.62, 0.26, 0.12))[0]
        k = (
            rng.choices(range(7), (3, 1, 1, 5, 2, 3, 5))[0]
            if naming == "real"
            else rng.choices(range(2, 7), (2, 5, 3, 3, 3))[0]
        )
        demonstrations = self._neighbours(pool, rows, query, k)
        if naming != "real" and all(c != query[1] for _, c in demonstrations):
            same = [row for row in rows if row[1] == query[1]]
            if not same:
                return None
            demonstrations[-1 if rng.random() < 0.4 else rng.randrange(k)] = rng.choice(same)
        names = [pool.label_names[c] for c in classes]
        if naming == "permuted":
            names = names[1:] + names[:1]
        elif naming == "nonsense":
            names = [self._nonsense() for _ in classes]
        order = list(range(len(classes)))
        rng.shuffle(order)
        shown = [names[i] for i in order]
        limit = 40 if k > 3 else 64
        if self._mixture == "focused":
            limit = limit * 5 // 8
        stem = self.piece(rng.choice(STEMS[pool.kind])) if rng.random() < 0.3 else []
        answer_type = rng.choices(("choice", "per_row", "label", "span"), (0.72, 0.08, 0.15, 0.05))[0]
        blocks = []
        for text, position in [*demonstrations, query]:
            question = stem + pool.texts.row(text, limit)
            if answer_type == "choice":
                blocks.append(Block(question, None, self.piece(LETTERS[order.index(position)])))
            elif answer_type == "per_row":
                mixed = list(range(len(classes)))
                rng.shuffle(mixed)
                blocks.append(Block(question, [names[i] for i in mixed], self.piece(LETTERS[mixed.index(position)])))
            else:
                blocks.append(Block(question, None, names[position]))
        head: list[int] = []
        instructions: Sequence[str] = SPAN_INSTRUCTIONS
        if answer_type == "choice":
            head = self._options(shown)
        elif answer_type == "label":
            head = self.piece("Labels:") + self._joined(shown, ",")
        if answer_type in ("choice", "per_row"):
            instructions = CHOICE_INSTRUCTIONS
        elif answer_type == "label":
            instructions = LABEL_INSTRUCTIONS
        if rng.random() < 0.25:
            instructions = TASK_INSTRUCTIONS[pool.kind]
        answers = None
        if answer_type == "choice" and rng.random() < 0.10:
            answers = self._proposals(blocks[-1].answer, len(classes))
        return self._render(instructions, head, blocks, answers)

    def _neighbours(
        self, pool: LabelPool, rows: list[tuple[int, int]], query: tuple[int, int], k: int
    ) -> list[tuple[int, int]]:
        """K demonstrations, least similar first: the nearest, random ones, or one of each of several classes."""
        rng = self.random
        k = min(k, len(rows))
        mode = rng.choices(("nearest", "random", "covered"), (0.75, 0.12, 0.13))[0]
        if mode == "random" or k == 0:
            return rng.sample(rows, k)
        if mode == "covered":
            rng.shuffle(rows)
            first = {position: (text, position) for text, position in rows}
            others = [row for row in first.values() if row[1] != query[1]]
            found = [*others[: k - 1], first[query[1]]] if query[1] in first else others[:k]
            rng.shuffle(found)
            return found
        similarity = pool.vectors[[text for text, _ in rows]].astype(np.float32) @ pool.vectors[query[0]].astype(
            np.float32
        )
        return [rows[i] for i in np.argsort(similarity)[len(rows) - k :]]

    def _stream(self) -> Episode | None:
        """Many short rows of a few classes, each one's answer trained with those before it as demonstrations."""
        rng = self.random
        pool = rng.choices(self.tasks.pools, (5, 3, 1, 0, 1))[0]
        n = min(len(pool.members), rng.choices(range(2, 9), (4, 5, 4, 2, 2, 1, 1))[0])
        classes = rng.sample(range(len(pool.members)), n)
        names = [pool.label_names[c] for c in classes] if rng.random() < 0.4 else [self._nonsense() for _ in classes]
        rows: list[tuple[int, int]] = []
        for _ in range(rng.randint(4, 12)):
            # as among nearest neighbours, most rows are of a class already seen
            position = rng.choice(rows)[1] if rows and rng.random() < 0.8 else rng.randrange(n)
            rows.append((int(rng.choice(pool.members[classes[position]])), position))
        blocks = [Block(pool.texts.row(text, 20), None, self.piece(LETTERS[position])) for text, position in rows]
        return self._render(CHOICE_INSTRUCTIONS, self._options(names), blocks, None)

    def _lookup(self) -> Episode | None:
        """Words with arbitrary labels; most questions repeat an earlier one, whole or in part."""
        rng = self.random
        n = rng.randint(2, 8)
        names = [self._nonsense() for _ in range(n)]
        keys = [
            (rng.choices(self.tasks.words, k=rng.randint(1, 4)), rng.randrange(n)) for _ in range(rng.randint(2, 4))
        ]
        lettered = rng.random() < 0.85
        blocks: list[Block] = []
        seen: set[int] = set()
        for i in range(rng.randint(4, 12)):
            key = (
                rng.randrange(len(keys))
                if i < 2 or not seen
                else rng.choice((rng.randrange(len(keys)), rng.choice(sorted(seen))))
            )
            text, label = keys[key]
            question = list(text)
            if rng.random() < 0.5:
                question += rng.choices(self.tasks.words, k=rng.randint(1, 3))
                rng.shuffle(question)
            blocks.append(Block(question, None, self.piece(LETTERS[label]) if lettered else names[label], key in seen))
            seen.add(key)
        if not blocks[-1].trained:
            return None
        head = self._options(names) if lettered else []
        return self._render(CHOICE_INSTRUCTIONS if lettered else SPAN_INSTRUCTIONS, head, blocks, None)

    def _choice(self) -> Episode | None:
        rng = self.random
        rows = rng.sample(self.tasks.choice_rows, 1 + rng.choice((0, 0, 1, 2, 3)))
        blocks = []
        for question, options, answer in rows:
            order = list(range(len(options)))
            rng.shuffle(order)
            order = order[: rng.randint(2, len(order))]
            if answer not in order:
                order[rng.randrange(len(order))] = answer
            blocks.append(Block(question, [options[i] for i in order], self.piece(LETTERS[order.index(answer)])))
        answers = self._proposals(blocks[-1].answer, len(blocks[-1].options or ())) if rng.random() < 0.15 else None
        return self._render(CHOICE_INSTRUCTIONS, [], blocks, answers)

    def _yes_no(self) -> Episode | None:
        rng = self.random
        rows = rng.sample(self.tasks.yes_no_rows, 1 + rng.randint(0, 4))
        names = [self.piece("no"), self.piece("yes")]
        flip = rng.randrange(2)
        if rng.random() < 0.5:
            blocks = [Block(question, None, self.piece(LETTERS[answer ^ flip])) for question, answer in rows]
            return self._render(CHOICE_INSTRUCTIONS, self._options(names[:: -1 if flip else 1]), blocks, None)
        blocks = [Block(question, None, names[answer]) for question, answer in rows]
        return self._render(LABEL_INSTRUCTIONS, self.piece("Labels: no, yes"), blocks, None)

    def _cloze(self) -> Episode | None:
        """Which word is missing from a sentence."""
        rng = self.random
        pool = rng.choice(self.tasks.prose_pools)
        blocks = []
        n = rng.randint(2, 6)
        blank = self.piece("____")
        for _ in range(1 + rng.choice((0, 1, 2, 3))):
            text = pool.texts.row(rng.randrange(len(pool.texts)), 40)
            places = [i for i, token in enumerate(text) if 1996 < token < 12000]
            if not places:
                return None
            place = rng.choice(places)
            options = [[text[place]], *([rng.choice(self.tasks.words)] for _ in range(n - 1))]
            rng.shuffle(options)
            letter = LETTERS[options.index([text[place]])]
            blocks.append(Block([*text[:place], *blank, *text[place + 1 :]], options, self.piece(letter)))
        return self._render((*CHOICE_INSTRUCTIONS, "Which word is missing?"), [], blocks, None)

    def _next_sentence(self) -> Episode | None:
        """Which sentence follows."""
        rng = self.random
        pool = rng.choice(self.tasks.prose_pools)
        n = rng.randint(2, 4)
        blocks = []
        for _ in range(rng.randint(1, 2)):
            members = pool.members[rng.randrange(len(pool.members))]
            i = rng.randrange(len(members) - 1)
            right = pool.texts.row(int(members[i + 1]), 24)
            options = [right, *(pool.texts.row(rng.randrange(len(pool.texts)), 24) for _ in range(n - 1))]
            rng.shuffle(options)
            question = self.piece("Which sentence follows?") + pool.texts.row(int(members[i]), 40)
            blocks.append(Block(question, options, self.piece(LETTERS[options.index(right)])))
        return self._render(CHOICE_INSTRUCTIONS, [], blocks, None)

    def _number(self) -> Episode | None:
        """Small sums, counts and copies."""
        rng = self.random
        form = rng.choice(("sum", "difference", "count", "copy"))
        blocks = []
        for _ in range(rng.randint(1, 5)):
            a, b = rng.randint(0, 30), rng.randint(0, 20)
            if form == "sum":
                question, answer = self.piece(f"What is {a} plus {b}?"), a + b
            elif form == "difference":
                question, answer = self.piece(f"There are {a + b} apples and {b} are eaten. How many are left?"), a
            elif form == "copy":
                word = rng.choice(self.tasks.words)
                question, answer = [*self.piece(f"{a}"), word, *self.piece("were bought. How many were bought?")], a
            else:
                answer = rng.randint(1, 9)
                question = self.piece("How many words?") + rng.choices(self.tasks.words, k=answer)
            blocks.append(Block(question, None, self.piece(str(answer))))
        return self._render(NUMBER_INSTRUCTIONS, [], blocks, None)

    # layout

    def _nonsense(self) -> list[int]:
        return self.random.choices(self.tasks.words, k=self.random.choice((1, 1, 2)))

    def _proposals(self, right: list[int], n: int) -> list[list[int]]:
        """Answers of four configurations, the right one most often among them."""
        rng = self.random
        wrong = self.piece(rng.choice(LETTERS[:n]))
        return [
            right if rng.random() < 0.55 else rng.choice((wrong, self.piece(rng.choice(LETTERS[:n])))) for _ in range(4)
        ]

    def _options(self, names: Sequence[list[int]]) -> list[int]:
        ids = list(self.piece("Options:"))
        for i, name in enumerate(names):
            ids += self.piece(f"{LETTERS[i]}.") + name
        return ids

    def _joined(self, parts: Sequence[list[int]], separator: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(parts):
            ids += (self.piece(separator) if i else []) + part
        return ids

    def _render(
        self,
        instructions: Sequence[str],
        head: list[int],
        blocks: list[Block],
        answers: list[list[int]] | None,
    ) -> Episode:
        rng = self.random
        ids = [CLS]
        draw = rng.random()
        if draw > 0.12:
            text = instructions[0] if draw > 0.75 else rng.choice(instructions)
            ids += self.piece(text)
            if draw < 0.15:
                ids.append(SEP)  # as a system message
        ids += head
        trained = [0] * len(ids)
        for block in blocks[:-1]:
            shown = self._block(block) + self.piece("Answer:")
            ids += shown + block.answer
            trained += [0] * len(shown) + [int(block.trained)] * len(block.answer)
        last = self._block(blocks[-1])
        if answers is not None:
            last = last + self.piece("Proposed answers:") + self._joined(answers, ";") + self.piece(JUSTIFY_LINE)
        ids += [*last, SEP]
        completion = [*self.piece("Answer:"), *blocks[-1].answer, SEP]
        trained += [0] * (len(last) + 1) + [1] * len(completion)
        return Episode(ids + completion, trained)

    def _block(self, block: Block) -> list[int]:
        ids = self.piece("Question:") + block.question
        for i, option in enumerate(block.options or ()):
            ids += self.piece(f"{LETTERS[i]}.") + option
        return ids


def check_layout(source: EpisodeSource, tokenizer: Any) -> None:
    """Compares the token-level layout with the product's prompt builder.

    Raises:
        RuntimeError: If they differ: the model would be trained on other prompts than it meets.
    """
    choices = ("red wine", "blue")
    examples = [Example(str(i), f"text {i} here", choices=choices, target="AB"[i % 2]) for i in range(3)]
    piece = source.piece
    for shared in (True, False):
        facts = TaskFacts(**({"shared_choices": choices} if shared else {}))
        builder = PromptBuilder(TaskConfig(type="choice"), facts)
        options = [piece(c) for c in choices]
        blocks = [
            Block(piece(e.question), None if shared else options, piece(e.target or ""))
            for e in (*examples[:0:-1], examples[0])
        ]
        for proposals in (None, ["B", "A"]):
            shown = blocks if proposals is None else blocks[-1:]
            messages = (
                builder.answer(examples[0], examples[1:])
                if proposals is None
                else builder.justify(examples[0], proposals)
            )
            expected = tokenizer(messages[0].content, add_special_tokens=False)["input_ids"]
            expected = [CLS, *expected, SEP, *piece(builder.completion("A", examples[0])), SEP]
            source.random.seed(0)
            source.random.random = lambda: 0.9  # type: ignore[method-assign]
            head = source._options(options) if shared else []
            got = source._render(
                CHOICE_INSTRUCTIONS, head, shown, [piece(p) for p in proposals] if proposals else None
            ).ids
            del source.random.random
            if got != expected:
                raise RuntimeError(f"layout differs: {tokenizer.decode(got)!r} is not {tokenizer.decode(expected)!r}")
