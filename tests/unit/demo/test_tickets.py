import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import semievol
from semievol.demo.ticket_grammar import GRAMMAR
from semievol.demo.tickets import GROUPS, QUEUES, TicketRow, TicketSplits, generate_tickets
from semievol.errors import ConfigError

SEED_0 = "4454591137e76ed6747aebf6212af1af5bb086e506c6737ea38776de28811453"
"""Changes only when the wording is changed on purpose; figures measured on the tickets are then out of date."""

TERMS = [cue.term.lower() for queue in GRAMMAR for cue in queue.new]


def digest(splits: TicketSplits) -> str:
    rows = chain.from_iterable(splits)
    return hashlib.sha256(
        "\n".join("\t".join((row.id, row.question, row.target, row.group)) for row in rows).encode()
    ).hexdigest()


def rows_with(term: str, rows: Iterable[TicketRow]) -> list[TicketRow]:
    return [row for row in rows if term in row.question.lower()]


@pytest.fixture(scope="module")
def splits() -> TicketSplits:
    return generate_tickets(0)


def test_generate_tickets_is_the_same_everywhere(splits: TicketSplits) -> None:
    assert digest(splits) == SEED_0


def test_generate_tickets_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import hashlib, itertools; from semievol.demo.tickets import generate_tickets; "
        "rows = itertools.chain.from_iterable(generate_tickets(0)); "
        r"text = '\n'.join('\t'.join((r.id, r.question, r.target, r.group)) for r in rows); "
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    source = Path(semievol.__file__).parents[1]
    env = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == SEED_0


def test_tickets_imports_nothing_heavy() -> None:
    source = Path(semievol.__file__).parents[1]
    code = (
        "import sys, semievol.demo.tickets, semievol.demo.docstrings; "
        "print([name for name in ('torch', 'numpy', 'sklearn') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_generate_tickets_has_default_sizes(splits: TicketSplits) -> None:
    assert [len(rows) for rows in splits] == [100, 1000, 400]


@pytest.mark.parametrize("sizes", [(10, 0, 0), (37, 113, 1), (200, 50, 80)])
def test_generate_tickets_has_asked_sizes(sizes: tuple[int, int, int]) -> None:
    splits = generate_tickets(3, n_labeled=sizes[0], n_unlabeled=sizes[1], n_test=sizes[2])
    assert tuple(len(rows) for rows in splits) == sizes


@pytest.mark.parametrize("sizes", [{"n_labeled": 9}, {"n_unlabeled": -1}, {"n_test": -1}])
def test_generate_tickets_refuses_impossible_sizes(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 10 labelled"):
        generate_tickets(0, **sizes)


def test_generate_tickets_has_unique_ids(splits: TicketSplits) -> None:
    ids = [row.id for row in chain.from_iterable(splits)]
    assert len(set(ids)) == len(ids)


def test_generate_tickets_has_no_near_duplicates(splits: TicketSplits) -> None:
    words = [set(re.findall(r"\w+", row.question.lower())) for row in chain.from_iterable(splits)]
    column = {word: index for index, word in enumerate(sorted(set().union(*words)))}
    present = np.zeros((len(words), len(column)), dtype=np.float32)
    for row, row_words in enumerate(words):
        present[row, [column[word] for word in row_words]] = 1
    common, size = present @ present.T, present.sum(axis=1)
    similarity = common / (size[:, None] + size[None, :] - common)
    np.fill_diagonal(similarity, 0)
    assert similarity.max() < 0.9


def test_generate_tickets_writes_8_to_35_words(splits: TicketSplits) -> None:
    lengths = [len(row.question.split()) for row in chain.from_iterable(splits)]
    assert min(lengths) >= 8
    assert max(lengths) <= 35


def test_generate_tickets_leaves_no_marks(splits: TicketSplits) -> None:
    assert not [row for row in chain.from_iterable(splits) if re.search(r"[\[\]{}|]|  ", row.question)]


def test_generate_tickets_labels_every_queue(splits: TicketSplits) -> None:
    assert {row.target for row in splits.labeled} == set(QUEUES)


def test_generate_tickets_has_unequal_queues_alike_in_unlabelled_and_test(splits: TicketSplits) -> None:
    for rows in (splits.unlabeled, splits.test):
        counts = Counter(row.target for row in rows if row.target)
        shares = {queue.name: 100 * counts[queue.name] / sum(counts.values()) for queue in GRAMMAR}
        assert shares == pytest.approx({queue.name: queue.share for queue in GRAMMAR}, abs=0.5)


def test_generate_tickets_puts_off_topic_rows_only_among_the_unlabelled(splits: TicketSplits) -> None:
    assert [sum(row.group == "off-topic" for row in rows) for rows in splits] == [0, 50, 0]


def test_generate_tickets_gives_no_target_to_off_topic_rows_alone(splits: TicketSplits) -> None:
    assert all((row.target == "") == (row.group == "off-topic") for row in chain.from_iterable(splits))


def test_generate_tickets_uses_every_group(splits: TicketSplits) -> None:
    assert {row.group for row in chain.from_iterable(splits)} == set(GROUPS)


def test_generate_tickets_keeps_new_terms_out_of_the_labelled_rows(splits: TicketSplits) -> None:
    assert not [term for term in TERMS if rows_with(term, splits.labeled)]


@pytest.mark.parametrize("seed", [0, 1])
def test_generate_tickets_repeats_each_new_term_among_the_unlabelled(seed: int) -> None:
    unlabeled = generate_tickets(seed).unlabeled
    assert min(len(rows_with(term, unlabeled)) for term in TERMS) >= 10


def test_generate_tickets_asks_for_each_new_term_in_the_test(splits: TicketSplits) -> None:
    assert min(len(rows_with(term, splits.test)) for term in TERMS) >= 2


def test_generate_tickets_uses_a_new_term_for_one_queue_only(splits: TicketSplits) -> None:
    queue_of = {cue.term.lower(): queue.name for queue in GRAMMAR for cue in queue.new}
    rows = list(chain.from_iterable(splits))
    assert all({row.target for row in rows_with(term, rows)} == {queue_of[term]} for term in TERMS)


def test_generate_tickets_needs_a_new_term_in_about_half_of_the_test(splits: TicketSplits) -> None:
    assert 0.4 <= sum(row.group == "new cue" for row in splits.test) / len(splits.test) <= 0.6


def test_generate_tickets_groups_rows_by_their_terms(splits: TicketSplits) -> None:
    def has_term(row: TicketRow) -> bool:
        return any(term in row.question.lower() for term in TERMS)

    assert all(has_term(row) == ("new cue" in row.group) for row in chain.from_iterable(splits))


def test_generate_tickets_writes_other_rows_for_another_seed(splits: TicketSplits) -> None:
    other = {row.question for row in chain.from_iterable(generate_tickets(1))}
    assert not other & {row.question for row in chain.from_iterable(splits)}


def test_generate_tickets_keeps_labelled_and_test_whatever_the_unlabelled(splits: TicketSplits) -> None:
    fewer = generate_tickets(0, n_unlabeled=20)
    assert (fewer.labeled, fewer.test) == (splits.labeled, splits.test)


def test_grammar_shares_add_up_to_one_hundred() -> None:
    assert sum(queue.share for queue in GRAMMAR) == 100


def test_grammar_terms_share_no_word() -> None:
    words = [word for term in TERMS for word in re.findall(r"[a-z]+", term)]
    assert len(set(words)) == len(words)
