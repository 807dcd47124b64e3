"""Exact search in blocks against a full sort, and FAISS against the exact search."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.backends import embed
from semievol.backends.base import check_packages, open_retriever
from semievol.config import FakeEmbedderConfig, ModelConfig, RetrieveConfig, parse_config
from semievol.errors import ConfigError

DATA = {"data": {"labeled": "a.csv", "unlabeled": "b.csv"}}


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 30),
    m=st.integers(0, 9),
    k=st.integers(0, 12),
    cells=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
def test_exact_index_in_blocks_equals_brute_force(seed: int, n: int, m: int, k: int, cells: tuple[int, int]) -> None:
    generator = np.random.default_rng(seed)
    rows, queries = (generator.integers(-2, 3, (size, 3)).astype(np.float32) for size in (n, m))  # many ties
    names = [f"{i:02d}" for i in generator.permutation(n)]
    expected = [
        sorted(zip(names, similarities.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))[:k]
        for similarities in queries @ rows.T
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "BLOCK_CELLS", cells[0])
        patch.setattr(embed, "SORTED_CELLS", cells[1])
        assert embed.ExactIndex(names, rows).search(queries, k) == expected


def random_rows(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def faiss_index(rows: np.ndarray, **settings: str):
    pytest.importorskip("faiss")
    from semievol.backends.faiss_index import FaissIndex

    names = [f"{i:04d}" for i in reversed(range(len(rows)))]
    return FaissIndex(names, rows, RetrieveConfig(index="faiss", **settings)), embed.ExactIndex(names, rows)


def assert_same(found, expected):
    """The same ids, and similarities within the last digit that is kept."""
    assert [[name for name, _ in row] for row in found] == [[name for name, _ in row] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert [value for _, value in row] == pytest.approx([value for _, value in other], abs=3e-6)


def test_flat_faiss_index_equals_the_exact_one():
    rows = random_rows(300, 0)
    rows[100:103] = rows[7]  # equal rows are ordered by id
    index, exact = faiss_index(rows, faiss_factory="Flat")
    queries = np.concatenate([random_rows(40, 1), rows[7:8]])
    assert_same(index.search(queries, 5), exact.search(queries, 5))
    assert index.search(queries[:2], 0) == [[], []]
    assert len(index.search(queries[:1], 1000)[0]) == 300


@pytest.mark.parametrize("factory", ["HNSW32", "IVF8,Flat"])
def test_faiss_index_finds_nearly_all_neighbours_and_the_same_each_time(factory):
    rows, queries = random_rows(600, 2), random_rows(50, 3)
    index, exact = faiss_index(rows, faiss_factory=factory)
    found, best = index.search(queries, 4), exact.search(queries, 4)
    hits = [len({i for i, _ in a} & {i for i, _ in b}) for a, b in zip(found, best, strict=True)]
    assert sum(hits) >= 0.95 * 4 * len(queries)
    assert faiss_index(rows, faiss_factory=factory)[0].search(queries, 4) == found


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"faiss_factory": "Hnsw32"}, "could not parse index string Hnsw32"),
        ({"faiss_factory": "IVF1024,Flat"}, r"training points \(20\) should be at least as large"),
        ({"faiss_factory": "Flat", "faiss_parameters": "efSearch=8"}, "could not set parameter efSearch"),
    ],
)
def test_faiss_index_that_cannot_be_made_names_the_key_and_the_reason(settings, reason):
    with pytest.raises(ConfigError, match=rf"retrieve\.faiss_factory.*{reason}.*retrieve\.index: exact"):
        faiss_index(random_rows(20, 4), **settings)


def test_retriever_uses_the_index_of_the_config():
    pytest.importorskip("faiss")
    search = RetrieveConfig(index="faiss", faiss_factory="Flat")
    found = []
    for config in (search, None):
        retriever = open_retriever(FakeEmbedderConfig(), ModelConfig(path="none"), search=config)
        retriever.index(["a", "b", "c"], ["red apple", "green pear", "red pear"])
        found.append(retriever.search(["a red apple", "pear"], 2))
    assert_same(*found)
    assert type(retriever._index).__name__ == "ExactIndex"


def test_missing_faiss_is_said_before_the_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    config = parse_config({**DATA, "retrieve": {"index": "faiss"}, "embedder": {"type": "fake"}})
    with pytest.raises(ConfigError, match=r"pip install 'semievol\[faiss\]'"):
        check_packages(config)


def test_faiss_with_words_is_refused():
    with pytest.raises(ConfigError, match=r"retrieve\.index: faiss compares embeddings"):
        parse_config({**DATA, "retrieve": {"index": "faiss"}, "embedder": {"type": "bm25"}})
