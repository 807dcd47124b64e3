from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.errors import ArtifactError
from semievol.spool import Joined, RecordFile, Spool, View
from semievol.types import Gold


class Pair(NamedTuple):
    name: str
    number: int | None


@given(names=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8), places=st.data())
def test_spool_gives_back_what_was_appended(names: list[str], places: st.DataObject) -> None:
    spool: Spool[Pair] = Spool(Pair)
    for i, name in enumerate(names):
        spool.append(Pair(name, None if i % 2 else i))
        place = places.draw(st.integers(0, i))  # reading between two appends moves the file's position
        assert spool[place].name == names[place]
    assert [pair.name for pair in spool] == names
    assert len(spool) == len(names)


def test_spool_is_a_sequence_like_a_list() -> None:
    records = [Pair("a", 1), Pair("b", 2), Pair("c", 3)]
    spool = Spool(Pair, records=records)
    assert (spool[-1], spool[1:], records[0] in spool) == (records[2], records[1:], True)
    assert spool == records
    assert spool != records[:2]
    with pytest.raises(IndexError):
        spool[3]


def test_spool_leaves_no_file_behind(tmp_path: Path) -> None:
    spool = Spool(Pair, folder=tmp_path, records=[Pair("a", 1)])
    assert list(tmp_path.iterdir()) == []
    assert spool[0].name == "a"


def test_two_walks_over_a_spool_do_not_disturb_each_other() -> None:
    spool = Spool(Pair, records=[Pair(str(i), i) for i in range(5)])
    assert [(a.number, b.number) for a in spool for b in spool] == [(i, j) for i in range(5) for j in range(5)]


def test_view_takes_positions_in_their_order() -> None:
    view = View(Spool(Pair, records=[Pair("a", 1), Pair("b", 2)]), np.array([1, 0, 1]), lambda pair: pair.name)
    assert view == ("b", "a", "b")


def test_joined_finds_the_part() -> None:
    assert list(Joined([1, 2], [], [3])) == [1, 2, 3]


def test_record_file_reads_by_place_and_names_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    path.write_text('{"example_id":"a","target":"A"}\n{"example_id":"é","target":"B"}\n{}\n', encoding="utf-8")
    records = RecordFile(path, Gold)
    assert (len(records), records[1], records[0]) == (3, Gold("é", "B"), Gold("a", "A"))
    with pytest.raises(ArtifactError, match="line 3: not a Gold"):
        records[2]


def test_record_file_that_is_missing_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="run the stages before it again"):
        RecordFile(tmp_path / "gold.jsonl", Gold)
