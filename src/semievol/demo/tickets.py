"""Generate synthetic support tickets whose unlabelled rows teach what the labelled ones do not say.

A demo of semi-supervised fine-tuning needs a task on which the unlabelled rows can help, that anybody can rebuild
without a download, and whose right answers are known throughout. The tickets are therefore written by a small grammar
(see `semievol.demo.ticket_grammar`); they are synthetic, and no result on them says how well anything does on real
tickets.

Each queue has plain cues, which all labelled rows use, and new terms (product names, partners, in-house nicknames,
error codes), which no labelled row contains. Among the unlabelled rows a new term mostly stands beside a plain cue of
its queue; among the test rows it often stands alone. A model that has seen the labelled rows only has to guess there,
while one that was also trained on well-chosen pseudo-labels can know.

A seed gives the same rows on every Python (see `semievol.demo.drawing`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from semievol.demo import ticket_phrases as phrases
from semievol.demo.drawing import Deck, NearDuplicates, apportion, pick, shuffled
from semievol.demo.ticket_grammar import GRAMMAR, NewCue, QueueGrammar
from semievol.errors import ConfigError, DataError

__all__ = ["GROUPS", "QUEUES", "TicketRow", "TicketSplits", "generate_tickets"]

QUEUES: tuple[str, ...] = tuple(queue.name for queue in GRAMMAR)
"""The labels, from the most frequent to the least."""

GROUPS: tuple[str, ...] = ("known cue", "known and new cue", "new cue", "ambiguous", "off-topic")
"""What a row gives away: a plain cue, a plain cue and a new term, new terms only, two queues, or none."""

# Percentages.
_LABELED_MIX = {"known cue": 92, "ambiguous": 8}
_UNLABELED_MIX = {"known cue": 14, "known and new cue": 62, "new cue": 14, "ambiguous": 10}
_TEST_MIX = {"known cue": 36, "known and new cue": 8, "new cue": 46, "ambiguous": 10}
_OFF_TOPIC_PERCENT = 5

_TWO_TERMS = 0.3
_WEAK_CUE = 0.6
_WORD_RANGE = (8, 35)
_MAX_TRIES = 200


@dataclass(frozen=True)
class TicketRow:
    """One synthetic ticket.

    Attributes:
        id: Unique over the three splits; its first letter names the split.
        question: The text of the ticket.
        target: The right queue, one of `QUEUES`; empty for an off-topic row, which belongs to none.
        group: What the row gives away, one of `GROUPS`, for accuracy by group.
    """

    id: str
    question: str
    target: str
    group: str


class TicketSplits(NamedTuple):
    """The rows of one seed; no two of them are the same or nearly so, within a split or across."""

    labeled: tuple[TicketRow, ...]
    unlabeled: tuple[TicketRow, ...]
    test: tuple[TicketRow, ...]


def generate_tickets(
    seed: int = 0, *, n_labeled: int = 100, n_unlabeled: int = 1000, n_test: int = 400
) -> TicketSplits:
    """Write the tickets of one seed.

    The queues are unequal and have the same shares in every split, and each has at least one labelled row. One
    unlabelled row in twenty is off-topic. Different seeds share the grammar, not the rows. The labelled and the test
    rows of a seed do not depend on `n_unlabeled`.

    Raises:
        ConfigError: If a size is negative, or too small for a row of every queue among the labelled.
        DataError: If the grammar cannot write that many different rows.
    """
    if n_labeled < len(QUEUES) or n_unlabeled < 0 or n_test < 0:
        raise ConfigError(
            f"the tickets need at least {len(QUEUES)} labelled rows and no negative sizes, "
            f"got n_labeled={n_labeled}, n_unlabeled={n_unlabeled}, n_test={n_test}"
        )
    writer = _Writer(Random(seed))
    n_off_topic = n_unlabeled * _OFF_TOPIC_PERCENT // 100
    labeled = writer.split("L", n_labeled, _LABELED_MIX)
    test = writer.split("T", n_test, _TEST_MIX)
    unlabeled = writer.split("U", n_unlabeled - n_off_topic, _UNLABELED_MIX, n_off_topic=n_off_topic)
    return TicketSplits(labeled, unlabeled, test)


class _QueueDecks:
    """One queue's cues within one split, dealt evenly."""

    def __init__(self, rng: Random, queue: QueueGrammar) -> None:
        self.queue = queue
        self.known: Deck[str] = Deck(rng, queue.known)
        self.weak: Deck[str] = Deck(rng, queue.weak)
        self.new: Deck[NewCue] = Deck(rng, queue.new)


@dataclass(frozen=True)
class _Draft:
    """The matter of a ticket, before it is worded.

    Attributes:
        clauses: What the ticket says of its matter, in order.
        terms: New terms, in which no typo may be made.
        to_support: Whether the sender wants something done; off-topic senders do not.
    """

    clauses: tuple[str, ...]
    terms: tuple[str, ...] = ()
    to_support: bool = True


class _Writer:
    """Writes the rows of all splits, so that none comes out like another."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._seen = NearDuplicates()

    def split(self, prefix: str, n_rows: int, mix: Mapping[str, int], *, n_off_topic: int = 0) -> tuple[TicketRow, ...]:
        rows: list[tuple[str, str, str]] = []
        least = 1 if n_rows >= len(GRAMMAR) else 0
        for queue, n_queue in zip(GRAMMAR, apportion(n_rows, [q.share for q in GRAMMAR], least=least), strict=True):
            decks = _QueueDecks(self._rng, queue)
            for group, count in zip(mix, apportion(n_queue, list(mix.values())), strict=True):
                rows.extend((self._fresh(self._draft(group, decks)), queue.name, group) for _ in range(count))
        rows.extend((self._fresh(self._off_topic()), "", "off-topic") for _ in range(n_off_topic))
        width = len(str(max(len(rows) - 1, 0)))
        return tuple(
            TicketRow(f"{prefix}{number:0{width}d}", *row) for number, row in enumerate(shuffled(self._rng, rows))
        )

    def _fresh(self, draft: _Draft) -> str:
        """Word the draft until the text is within the length range and unlike all earlier ones."""
        for _ in range(_MAX_TRIES):
            text = self._worded(draft)
            if _WORD_RANGE[0] <= len(text.split()) <= _WORD_RANGE[1] and self._seen.admit(text):
                return text
        raise DataError("the ticket grammar cannot write that many different rows; ask for fewer")

    def _draft(self, group: str, decks: _QueueDecks) -> _Draft:
        rng = self._rng
        if group == "known cue":
            return _Draft((decks.known.draw(),))
        if group == "ambiguous":
            other = pick(rng, [queue for queue in GRAMMAR if queue is not decks.queue])
            aside = pick(rng, phrases.ASIDES).replace("{topic}", pick(rng, other.topics))
            return _Draft(tuple(shuffled(rng, (aside, decks.known.draw()))))
        cues = [decks.new.draw() for _ in range(2 if rng.random() < _TWO_TERMS else 1)]
        clauses = [self._mention(cue) for cue in cues]
        if group == "known and new cue":
            clauses.append(decks.known.draw())
        elif rng.random() < _WEAK_CUE:
            clauses.append(decks.weak.draw())
        return _Draft(tuple(shuffled(rng, clauses)), tuple(cue.term for cue in cues))

    def _mention(self, cue: NewCue) -> str:
        patterns = phrases.NEW_PATTERNS["any"] + phrases.NEW_PATTERNS[cue.kind] * 2
        return pick(self._rng, patterns).replace("{cue}", cue.term)

    def _off_topic(self) -> _Draft:
        clauses = (pick(self._rng, phrases.OFF_TOPIC), pick(self._rng, phrases.OFF_TOPIC_EXTRAS))
        return _Draft(clauses, to_support=False)

    def _worded(self, draft: _Draft) -> str:
        """Word the draft once: with greeting, context, request and signature or without, tidy or careless."""
        rng = self._rng
        clauses = list(draft.clauses)
        if draft.to_support and rng.random() < 0.45:
            clauses.insert(0 if rng.random() < 0.5 else len(clauses), pick(rng, phrases.CONTEXTS))
        greeting = pick(rng, phrases.GREETINGS) + pick(rng, (",", ",", "!", ".")) if rng.random() < 0.55 else ""
        request = self._sentence(pick(rng, phrases.REQUESTS)) if draft.to_support and rng.random() < 0.6 else ""
        sign_off = pick(rng, phrases.SIGN_OFFS) if rng.random() < 0.4 else ""
        text = self._filled(" ".join(part for part in (greeting, self._joined(clauses), request, sign_off) if part))
        if rng.random() < 0.3:
            text = self._misspelt(text, draft.terms)
        manner = rng.random()
        if manner < 0.2:
            return text.lower()
        return text.rstrip(".!?") if manner < 0.3 else text

    def _joined(self, clauses: Sequence[str]) -> str:
        """Put each clause in a sentence of its own, or now and then two in one."""
        sentences: list[str] = []
        for clause in clauses:
            if sentences and not sentences[-1].endswith("?") and self._rng.random() < 0.25:
                sentences[-1] += pick(self._rng, (", ", ", and ", " - ", "; ")) + clause
            else:
                sentences.append(clause)
        return " ".join(self._sentence(sentence) for sentence in sentences)

    def _sentence(self, clause: str) -> str:
        end = "" if clause[-1] in "?!" else pick(self._rng, (".", ".", ".", ".", ".", ".", "!", "..."))
        return f"{clause}{end}"

    def _filled(self, pattern: str) -> str:
        """Choose among the alternatives, fill the slots, and begin each sentence with a capital."""
        rng = self._rng
        text = re.sub(r"\[([^\]]*)\]", lambda match: pick(rng, match[1].split("|")), pattern)
        text = text.replace("{day}", pick(rng, phrases.DAYS)).replace("{name}", pick(rng, phrases.NAMES))
        text = text.replace("{number}", str(10_000 + int(rng.random() * 90_000)))
        text = re.sub(r"\s+(?=[.,;!?])", "", re.sub(r"\s+", " ", text)).strip()
        return re.sub(r"(?:^|(?<=[.!?] ))[a-z]", lambda match: match[0].upper(), text)

    def _misspelt(self, text: str, terms: Sequence[str]) -> str:
        """Make one typo in a word of five letters or more that is not part of a new term."""
        kept = {word.lower() for term in terms for word in re.findall(r"[A-Za-z]+", term)}
        spots = [match for match in re.finditer(r"[A-Za-z]{5,}", text) if match[0].lower() not in kept]
        if not spots:
            return text
        spot = pick(self._rng, spots)
        word = spot[0]
        at = 1 + int(self._rng.random() * (len(word) - 2))
        dropped, doubled = word[:at] + word[at + 1 :], word[: at + 1] + word[at:]
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return text[: spot.start()] + pick(self._rng, (dropped, doubled, swapped)) + text[spot.end() :]
