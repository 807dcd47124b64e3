"""A small, fixed choice of unlabelled rows for the report, with everything that happened to each.

Rows are looked up in the run folder's files, never read through: lines are taken at even places of a file and found
again in the others near the same place, since all of them keep the order of U. So a million rows cost no more than a
thousand. The sealed targets are opened for the shown rows alone, after everything has been trained and measured.
"""

import mmap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from semievol.artifacts import RunDir, record_adapter
from semievol.config import RunConfig
from semievol.errors import ArtifactError
from semievol.types import AuditedRow, Candidates, Demonstrations, Dropped, Example, PseudoLabel, choice_letter

Record = TypeVar("Record")

POOL_FACTOR = 4
"""Rows looked at for each row that is shown, so that rare kinds are among them."""
FIRST_WINDOW = 1 << 18
"""Bytes to both sides of the expected place in which a row is looked for first."""
LONGEST_TEXT = 1500
LONGEST_DEMONSTRATION = 600

_FATES = ("kept", "dropped", "unusable")


class Demonstration(NamedTuple):
    """A labelled row that stood in the prompt."""

    id: str
    question: str
    answer: str
    similarity: float
    is_pseudo: bool
    """Whether its answer is a pseudo-label of an earlier round."""


class CandidateAnswer(NamedTuple):
    """What one configuration answered."""

    configuration: str
    text: str
    answer: str | None
    mean_nll: float | None
    is_final: bool
    """Whether it is the final answer."""


class ShownRow(NamedTuple):
    """One unlabelled row as the report shows it; texts are cut to what a page can hold."""

    id: str
    fate: Literal["kept", "dropped", "unusable"]
    reason: str
    detail: str
    round: int
    context: str
    question: str
    options: tuple[tuple[str, str], ...]
    group: str | None
    label: PseudoLabel | None
    answer: str
    """The final answer, empty where there is none."""
    justification: str
    gold: str | None
    is_right: bool | None
    demonstrations: tuple[Demonstration, ...]
    candidates: tuple[CandidateAnswer, ...]


class _Found(NamedTuple):
    """A row of the pool before its details are looked up."""

    example: Example
    round: int
    place: float
    """Where it lies in its file, in [0, 1]."""
    label: PseudoLabel | None
    drop: Dropped | None
    gold: str | None
    is_right: bool | None

    @property
    def fate(self) -> Literal["kept", "dropped", "unusable"]:
        """Kept, dropped by selection, or without a usable answer."""
        if self.drop is None:
            return "kept"
        return "dropped" if self.label is not None else "unusable"

    @property
    def kind(self) -> tuple[str, str, str]:
        """What rows are mixed by."""
        source = (
            self.drop.stage if self.label is None and self.drop is not None else self.label.source if self.label else ""
        )
        return self.fate, str(self.is_right), source


def choose_rows(config: RunConfig, run_dir: RunDir) -> list[ShownRow]:
    """Up to `report.n_examples` rows, mixed over kept and dropped, source, and right and wrong; not a fair sample.

    Dropped rows are those of the last round, which looked at all rows that were still left.
    """
    most = config.report.n_examples
    if most == 0:
        return []
    chosen = mix_kinds(list(_pool(config, run_dir, n=POOL_FACTOR * most)), most)
    return [_show(found, config, run_dir) for found in chosen]


def mix_kinds(pool: Sequence[_Found], most: int) -> list[_Found]:
    """Take rows of all kinds in turn until there are `most`; kept first, surest first."""
    by_kind: dict[tuple[str, str, str], list[_Found]] = defaultdict(list)
    for found in pool:
        by_kind[found.kind].append(found)
    turns = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    taken = [found for turn in turns for found in turn if found is not None][:most]

    def order(found: _Found) -> tuple[int, float, str]:
        nll = found.label.mean_nll if found.label is not None and found.label.mean_nll is not None else 0.0
        return _FATES.index(found.fate), nll, found.example.id

    return sorted(taken, key=order)


def sample_records(run_dir: RunDir, artifact: str, kind: type[Record], n: int) -> list[tuple[float, Record]]:
    """Up to `n` records from even places of an artifact, each with its place in [0, 1]; all where there are fewer."""
    with _mapped(run_dir.file(artifact)) as data:
        places = [int((i + 0.5) / n * len(data)) for i in range(n)] if len(data) else []
        starts = dict.fromkeys(data.rfind(b"\n", 0, place) + 1 for place in places)
        return [(at / len(data), _parse(_line(data, at), kind)) for at in starts]


def find_record(
    run_dir: RunDir, artifact: str, row_id: str, kind: type[Record], *, near: float, key: str = "example_id"
) -> Record | None:
    """The record of a row, looked for around the place `near` of the file first; None if there is none."""
    needle = b'{"%s":%s,' % (key.encode(), record_adapter(str).dump_json(row_id))
    with _mapped(run_dir.file(artifact)) as data:
        if data[: len(needle)] == needle:
            return _parse(_line(data, 0), kind)
        width = FIRST_WINDOW
        while len(data):
            low, high = max(0, int(near * len(data)) - width), int(near * len(data)) + width
            at = data.find(b"\n" + needle, low, high)
            if at >= 0:
                return _parse(_line(data, at + 1), kind)
            if low == 0 and high >= len(data):
                break
            width *= 8
    return None


def _parse(line: bytes, kind: type[Record]) -> Record:
    record: Record = record_adapter(kind).validate_json(line)
    return record


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    try:
        with path.open("rb") as stream:
            if path.stat().st_size == 0:
                yield b""
                return
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; run the stages before the report again") from None


def _line(data: mmap.mmap | bytes, start: int) -> bytes:
    end = data.find(b"\n", start)
    return bytes(data[start : end if end >= 0 else len(data)])


def _pool(config: RunConfig, run_dir: RunDir, *, n: int) -> Iterator[_Found]:
    each = -(-n // (2 * config.rounds))
    for number in range(1, config.rounds + 1):
        for place, label in sample_records(run_dir, f"round-{number}/select/kept", PseudoLabel, each):
            yield _find(config, run_dir, label.example_id, number, place, label, None)
    last = f"round-{config.rounds}"
    for place, drop in sample_records(run_dir, f"{last}/select/dropped", Dropped, n // 2):
        found = find_record(run_dir, f"{last}/justify/pseudo_labels", drop.example_id, PseudoLabel, near=place)
        yield _find(config, run_dir, drop.example_id, config.rounds, place, found, drop)
    for artifact in ("justify/dropped", "propagate/failed"):
        for place, drop in sample_records(run_dir, f"{last}/{artifact}", Dropped, 3):
            yield _find(config, run_dir, drop.example_id, config.rounds, place, None, drop)


def _find(
    config: RunConfig,
    run_dir: RunDir,
    row_id: str,
    round: int,
    place: float,
    label: PseudoLabel | None,
    drop: Dropped | None,
) -> _Found:
    example = find_record(run_dir, "data/unlabeled", row_id, Example, near=place, key="id")
    if example is None:
        raise ArtifactError(f"report: row {row_id} of round {round} is not in data/unlabeled; run the data stage again")
    audited = find_record(run_dir, "evaluate/audited", row_id, AuditedRow, near=place)
    if audited is None:
        return _Found(example, round, place, label, drop, None, None)
    return _Found(example, round, place, label, drop, audited.target, None if label is None else audited.is_right)


def _show(found: _Found, config: RunConfig, run_dir: RunDir) -> ShownRow:
    example, label, drop = found.example, found.label, found.drop
    turns = [f"{turn.role}: {turn.content}" for turn in example.history]
    return ShownRow(
        id=example.id,
        fate=found.fate,
        reason="kept" if drop is None else drop.reason,
        detail="" if drop is None else drop.detail,
        round=found.round,
        context=cut_text("\n".join([*turns, *([example.context] if example.context else [])]), LONGEST_TEXT),
        question=cut_text(example.question, LONGEST_TEXT),
        options=tuple((choice_letter(i), cut_text(text, 300)) for i, text in enumerate(example.choices)),
        group=example.group,
        label=label,
        answer=cut_text(label.answer, LONGEST_TEXT) if label is not None else "",
        justification=cut_text(label.justification or "", LONGEST_TEXT) if label is not None else "",
        gold=None if found.gold is None else cut_text(found.gold, LONGEST_TEXT),
        is_right=found.is_right,
        demonstrations=_demonstrations(found, run_dir),
        candidates=_candidates(found, run_dir),
    )


def _candidates(found: _Found, run_dir: RunDir) -> tuple[CandidateAnswer, ...]:
    record = find_record(
        run_dir, f"round-{found.round}/propagate/candidates", found.example.id, Candidates, near=found.place
    )
    if record is None:
        return ()
    final = found.label.answer if found.label is not None else None
    return tuple(
        CandidateAnswer(
            name,
            cut_text(completion.text, LONGEST_TEXT),
            None if answer is None else cut_text(answer, LONGEST_TEXT),
            completion.mean_nll if completion.token_logprobs else None,
            answer is not None and answer == final,
        )
        for name, completion, answer in zip(record.config_names, record.completions, record.answers, strict=True)
    )


def _demonstrations(found: _Found, run_dir: RunDir) -> tuple[Demonstration, ...]:
    record = find_record(
        run_dir, f"round-{found.round}/retrieve/demonstrations", found.example.id, Demonstrations, near=found.place
    )
    if record is None:
        return ()
    shown = []
    for row_id, similarity in zip(record.demonstration_ids, record.similarities, strict=True):
        example = find_record(run_dir, "data/labeled", row_id, Example, near=0.5, key="id")
        answer, is_pseudo = (None, True) if example is None else (example.target, False)
        if example is None:
            example = find_record(run_dir, "data/unlabeled", row_id, Example, near=0.5, key="id")
            answer = _earlier_answer(run_dir, row_id, before_round=found.round)
        question = "" if example is None else example.question
        shown.append(
            Demonstration(
                row_id,
                cut_text(question, LONGEST_DEMONSTRATION),
                cut_text(answer or "", LONGEST_DEMONSTRATION),
                similarity,
                is_pseudo,
            )
        )
    return tuple(shown)


def _earlier_answer(run_dir: RunDir, row_id: str, *, before_round: int) -> str | None:
    for number in range(1, before_round):
        label = find_record(run_dir, f"round-{number}/select/kept", row_id, PseudoLabel, near=0.5)
        if label is not None:
            return label.answer
    return None


def cut_text(text: str, most: int) -> str:
    """At most `most` characters of a text, with a note of how many are left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"
