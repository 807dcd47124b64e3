"""Build a classification task from the docstrings of the installed Python standard library.

It is the second demo: real text that nobody had to label, since every module stands in one chapter of the library
reference, and that is on every machine, so that nothing has to be shipped or downloaded. A row's text is the first
paragraph of the docstring of a public function, method or class; its label is the chapter.

The text is the docstring alone, without the function's name: names such as `TestCase` or `SSLSocket` often give the
chapter away by themselves. The sources are parsed and never imported. Rows and their number differ between Python
versions, so figures from two versions are not comparable.
"""

import ast
import re
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

from semievol.demo.drawing import NearDuplicates, apportion, shuffled
from semievol.errors import ConfigError, DataError

__all__ = ["CHAPTERS", "DocstringRow", "DocstringSplits", "collect_docstrings", "split_docstrings"]

_MODULES_BY_CHAPTER: dict[str, str] = {
    "text processing": "string re difflib textwrap stringprep rlcompleter",
    "data types": (
        "datetime _pydatetime zoneinfo calendar collections _collections_abc heapq bisect weakref _weakrefset types "
        "copy pprint reprlib enum graphlib"
    ),
    "mathematics": "numbers decimal _pydecimal fractions random statistics",
    "files": "pathlib fileinput stat filecmp tempfile glob fnmatch linecache shutil posixpath ntpath genericpath",
    "compression": "gzip bz2 lzma zipfile tarfile compression",
    "file formats": "csv configparser tomllib netrc plistlib",
    "operating system": "os io _pyio argparse optparse getopt getpass logging platform ctypes curses",
    "concurrency": "threading multiprocessing concurrent subprocess sched queue contextvars",
    "networking": "asyncio socket ssl selectors signal",
    "internet data": "email json mailbox mimetypes base64 quopri",
    "markup": "html xml _markupbase",
    "internet protocols": (
        "webbrowser wsgiref urllib http ftplib poplib imaplib smtplib uuid socketserver xmlrpc ipaddress"
    ),
    "graphics": "tkinter turtle",
    "development tools": "typing pydoc doctest unittest",
    "debugging": "bdb pdb profile cProfile pstats timeit trace tracemalloc",
    "runtime": "warnings dataclasses contextlib abc atexit traceback inspect annotationlib site sysconfig",
    "imports": "importlib pkgutil modulefinder runpy zipimport",
    "language": "ast symtable token keyword tokenize tabnanny pyclbr py_compile compileall dis pickletools opcode",
}

CHAPTERS: tuple[str, ...] = tuple(_MODULES_BY_CHAPTER)
"""The labels: chapters of the library reference of Python 3.11, under short names, without the smallest chapters."""

_CHAPTER_OF: dict[str, str] = {
    module: chapter for chapter, modules in _MODULES_BY_CHAPTER.items() for module in modules.split()
}
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "site-packages", "__pycache__", "_vendor"})
_MIN_WORDS = 5
_MAX_WORDS = 60
_OPENING_WORDS = 8

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class DocstringRow:
    """One documented function, method or class.

    Attributes:
        id: `module:qualified.name`, the same in every run on one Python.
        question: First paragraph of the docstring.
        target: Chapter of the library reference, one of `CHAPTERS`.
        group: Top-level module, for accuracy by module.
    """

    id: str
    question: str
    target: str
    group: str


class DocstringSplits(NamedTuple):
    """Disjoint rows, none of them nearly the same as another."""

    labeled: tuple[DocstringRow, ...]
    unlabeled: tuple[DocstringRow, ...]
    test: tuple[DocstringRow, ...]


def collect_docstrings(stdlib: Path | None = None) -> tuple[DocstringRow, ...]:
    """Read all rows from the standard library's sources, sorted by id.

    Left out are texts of fewer than five words and texts that stand under several chapters, which say nothing of the
    chapter; a text that comes more than once in a chapter is kept once. Texts are cut after 60 words.

    Args:
        stdlib: Folder of the standard library; the running Python's if None.

    Raises:
        DataError: If the folder holds no sources, as in zipped or stripped installations.
    """
    folder = Path(sysconfig.get_path("stdlib")) if stdlib is None else stdlib
    rows = sorted((row for path in _sources(folder) for row in _rows_of(path, folder)), key=lambda row: row.id)
    if not rows:
        raise DataError(
            f"no documented standard library sources in {folder}: they are missing or zipped in this Python; "
            "use another Python installation or the tickets demo"
        )
    chapters: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        chapters[_normal(row.question)].add(row.target)
    kept: dict[str, DocstringRow] = {}
    for row in rows:
        key = _normal(row.question)
        if len(chapters[key]) == 1:
            kept.setdefault(key, row)
    return tuple(kept.values())


def split_docstrings(
    rows: Sequence[DocstringRow], seed: int = 0, *, n_labeled: int = 200, n_unlabeled: int = 1000, n_test: int = 500
) -> DocstringSplits:
    """Draw the three splits, each with the chapters in the shares that they have among the rows.

    Of rows that are nearly the same (equal first eight words, or nine tenths of the words in common) only the first is
    used. Each chapter has at least one labelled row. The splits of a seed are shuffled.

    Raises:
        ConfigError: If a size is negative, or `n_labeled` smaller than the number of chapters.
        DataError: If there are fewer rows than asked for.
    """
    by_chapter: dict[str, list[DocstringRow]] = defaultdict(list)
    for row in _without_near_duplicates(rows):
        by_chapter[row.target].append(row)
    n_rows = sum(map(len, by_chapter.values()))
    if n_labeled < len(by_chapter) or n_unlabeled < 0 or n_test < 0:
        raise ConfigError(
            f"the docstrings need at least {len(by_chapter)} labelled rows, one a chapter, and no negative sizes, "
            f"got n_labeled={n_labeled}, n_unlabeled={n_unlabeled}, n_test={n_test}"
        )
    if n_labeled + n_unlabeled + n_test > n_rows:
        raise DataError(
            f"asked for {n_labeled} labelled, {n_unlabeled} unlabelled and {n_test} test rows, "
            f"but only {n_rows} differ enough from each other"
        )
    rng = Random(seed)
    piles = [shuffled(rng, by_chapter[chapter]) for chapter in sorted(by_chapter)]
    first = [pile.pop() for pile in piles]
    labeled = first + _taken(piles, n_labeled - len(first))
    test = _taken(piles, n_test)
    unlabeled = _taken(piles, n_unlabeled)
    return DocstringSplits(*(tuple(shuffled(rng, split)) for split in (labeled, unlabeled, test)))


def _sources(folder: Path) -> Iterator[Path]:
    for module in _CHAPTER_OF:
        if (folder / f"{module}.py").is_file():
            yield folder / f"{module}.py"
        for path in (folder / module).rglob("*.py"):
            if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts):
                yield path


def _rows_of(path: Path, folder: Path) -> Iterator[DocstringRow]:
    parts = path.relative_to(folder).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        tree = ast.parse(path.read_bytes())
    for name, text in _documented(tree.body, ""):
        words = text.split()
        if len(words) >= _MIN_WORDS:
            yield DocstringRow(f"{module}:{name}", " ".join(words[:_MAX_WORDS]), _CHAPTER_OF[parts[0]], parts[0])


def _documented(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
    """Names and first paragraphs of the public definitions in a module's or class's body, each name once."""
    seen: set[str] = set()
    for node in _definitions(body):
        if node.name.startswith("_") or node.name in seen:
            continue
        seen.add(node.name)
        docstring = ast.get_docstring(node)
        if docstring:
            yield prefix + node.name, re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
        if isinstance(node, ast.ClassDef):
            yield from _documented(node.body, f"{prefix}{node.name}.")


def _definitions(body: Sequence[ast.stmt]) -> Iterator[_Definition]:
    """Functions and classes of a body, with those that stand under a condition or in a try block."""
    for node in body:
        if isinstance(node, _Definition):
            yield node
        elif isinstance(node, ast.If):
            yield from _definitions([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            handled = [statement for handler in node.handlers for statement in handler.body]
            yield from _definitions([*node.body, *handled, *node.orelse])


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _without_near_duplicates(rows: Sequence[DocstringRow]) -> Iterator[DocstringRow]:
    openings: set[str] = set()
    texts = NearDuplicates()
    for row in rows:
        opening = " ".join(_normal(row.question).split()[:_OPENING_WORDS])
        if opening not in openings and texts.admit(row.question):
            openings.add(opening)
            yield row


def _taken(piles: Sequence[list[DocstringRow]], count: int) -> list[DocstringRow]:
    """Take `count` rows off the piles, from each in proportion to what is left of it."""
    counts = apportion(count, [len(pile) for pile in piles])
    return [pile.pop() for pile, n_pile in zip(piles, counts, strict=True) for _ in range(n_pile)]
