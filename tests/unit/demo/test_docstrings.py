import json
import re
import shutil
import sysconfig
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest

from semievol.demo.docstrings import CHAPTERS, DocstringRow, collect_docstrings, split_docstrings
from semievol.errors import ConfigError, DataError


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    """A folder that looks like a standard library."""
    write(
        tmp_path / "threading.py",
        '''
        class Lock:
            """Guard a   resource that several
            threads of one program share.

            A second paragraph.
            """

            def acquire(self):
                """Wait until no other thread holds the lock."""

            def _hidden(self):
                """Nobody outside of the class should call this."""

            def __repr__(self):
                """Return a text that describes the lock."""

        def short():
            """Much too short."""

        try:
            import missing
        except ImportError:
            def fallback():
                """Stand in for a module that is missing here."""
        ''',
    )
    write(tmp_path / "json" / "__init__.py", 'def dump():\n    """Write an object as text to a file."""\n')
    write(tmp_path / "json" / "tool.py", f'def main():\n    """{"word " * 100}"""\n')
    write(tmp_path / "tkinter" / "test" / "case.py", 'def case():\n    """Test something that is not for users."""\n')
    write(tmp_path / "elsewhere.py", 'def lost():\n    """Stand in no chapter of the library reference."""\n')
    return tmp_path


def write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source), encoding="utf-8")


def made_rows(n_rows: int = 300) -> list[DocstringRow]:
    """Rows without a word in common, in three chapters of which each is half as large as the one before."""
    rows = []
    for number in range(n_rows):
        chapter = CHAPTERS[0 if number % 7 < 4 else 1 if number % 7 < 6 else 2]
        text = " ".join(f"w{number}x{place}" for place in range(12))
        rows.append(DocstringRow(f"module:f{number:04d}", text, chapter, "module"))
    return rows


def test_collect_docstrings_finds_public_definitions_sorted_by_id(stdlib: Path) -> None:
    assert [row.id for row in collect_docstrings(stdlib)] == [
        "json.tool:main",
        "json:dump",
        "threading:Lock",
        "threading:Lock.acquire",
        "threading:fallback",
    ]


def test_collect_docstrings_takes_the_first_paragraph_on_one_line(stdlib: Path) -> None:
    row = next(row for row in collect_docstrings(stdlib) if row.id == "threading:Lock")
    assert row.question == "Guard a resource that several threads of one program share."


def test_collect_docstrings_labels_by_chapter_and_groups_by_module(stdlib: Path) -> None:
    assert {(row.target, row.group) for row in collect_docstrings(stdlib)} == {
        ("internet data", "json"),
        ("concurrency", "threading"),
    }


def test_collect_docstrings_cuts_long_texts(stdlib: Path) -> None:
    assert max(len(row.question.split()) for row in collect_docstrings(stdlib)) == 60


def test_collect_docstrings_drops_texts_of_several_chapters(stdlib: Path) -> None:
    write(stdlib / "random.py", 'def dump():\n    """Write an object as text to a file"""\n')
    assert "json:dump" not in {row.id for row in collect_docstrings(stdlib)}


def test_collect_docstrings_keeps_repeated_texts_once(stdlib: Path) -> None:
    write(stdlib / "json" / "encoder.py", 'def dump():\n    """Write an object as text to a file"""\n')
    assert [row.id for row in collect_docstrings(stdlib) if "Write" in row.question] == ["json.encoder:dump"]


def test_collect_docstrings_without_sources_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing or zipped"):
        collect_docstrings(tmp_path)


def test_collect_docstrings_reads_this_python(tmp_path: Path) -> None:
    for module in (textwrap, threading):
        shutil.copy(str(module.__file__), tmp_path)
    shutil.copytree(Path(str(json.__file__)).parent, tmp_path / "json")
    assert {row.target for row in collect_docstrings(tmp_path)} == {"text processing", "concurrency", "internet data"}


@pytest.mark.slow
def test_collect_docstrings_finds_every_chapter_in_the_whole_library() -> None:
    counts = Counter(row.target for row in collect_docstrings(Path(sysconfig.get_path("stdlib"))))
    assert set(counts) == set(CHAPTERS)
    assert min(counts.values()) >= 30


def test_split_docstrings_has_asked_sizes() -> None:
    splits = split_docstrings(made_rows(), n_labeled=20, n_unlabeled=150, n_test=50)
    assert [len(rows) for rows in splits] == [20, 150, 50]


def test_split_docstrings_can_use_every_row() -> None:
    splits = split_docstrings(made_rows(), n_labeled=50, n_unlabeled=150, n_test=100)
    assert len({row.id for rows in splits for row in rows}) == 300


def test_split_docstrings_is_the_same_for_a_seed() -> None:
    sizes = {"n_labeled": 20, "n_unlabeled": 150, "n_test": 50}
    assert split_docstrings(made_rows(), 4, **sizes) == split_docstrings(made_rows(), 4, **sizes)


def test_split_docstrings_differs_between_seeds() -> None:
    sizes = {"n_labeled": 20, "n_unlabeled": 150, "n_test": 50}
    assert split_docstrings(made_rows(), 4, **sizes) != split_docstrings(made_rows(), 5, **sizes)


def test_split_docstrings_keeps_chapter_shares() -> None:
    rows = made_rows()
    expected = {chapter: count / len(rows) for chapter, count in Counter(row.target for row in rows).items()}
    for split in split_docstrings(rows, n_labeled=50, n_unlabeled=100, n_test=100):
        shares = {chapter: count / len(split) for chapter, count in Counter(row.target for row in split).items()}
        assert shares == pytest.approx(expected, abs=0.03)


def test_split_docstrings_labels_every_chapter() -> None:
    splits = split_docstrings(made_rows(), n_labeled=3, n_unlabeled=10, n_test=10)
    assert {row.target for row in splits.labeled} == set(CHAPTERS[:3])


def test_split_docstrings_uses_one_of_rows_with_the_same_opening() -> None:
    rows = [*made_rows(), DocstringRow("z:z", " ".join(f"W0x{place}" for place in range(8)), CHAPTERS[0], "z")]
    with pytest.raises(DataError, match="only 300 differ"):
        split_docstrings(rows, n_labeled=101, n_unlabeled=100, n_test=100)


def test_split_docstrings_refuses_fewer_labels_than_chapters() -> None:
    with pytest.raises(ConfigError, match="at least 3 labelled"):
        split_docstrings(made_rows(), n_labeled=2)


def test_chapters_have_short_lower_case_names() -> None:
    assert all(re.fullmatch(r"[a-z]+( [a-z]+){0,2}", chapter) for chapter in CHAPTERS)
