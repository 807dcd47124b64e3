"""Finds what a model states as its answer in what it wrote: cleaning, answer markers, known texts.

Every pattern here has bounded repeats or a single anchored pass, so time grows in step with the length of the text.
Only English markers are known; a `completion_template` adds the words around its `{{ answer }}` as a further marker.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

_MAX_MARKERS = 32
_MAX_LINE = 4_000
_INVISIBLE = dict.fromkeys((0x00AD, 0x200B, 0x200C, 0x200E, 0x200F, 0x2060, 0xFEFF))
_PLAIN_MARKS = {
    **dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2212), "-"),
    **dict.fromkeys((0x2018, 0x2019), "'"),
    **dict.fromkeys((0x201C, 0x201D), '"'),
}
_MARKUP = re.compile(r"\*\*|__|`")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit)\s{0,2}\{([^{}]*)\}")
_BOXED = re.compile(r"\\boxed\s{0,2}\{([^{}\n]*)\}")
_MARKER = re.compile(
    r"(?:\b(?:answers?|(?:correct|right|best|final)[ \t]{1,2}(?:choice|option|label|result|value|category))[\"'*_]{0,3}"
    r"(?:[ \t]{1,2}(?:to|of|for|in|here|choice|option|letter|label)\b[^\n.:=]{0,80}?)?"
    r"[ \t]{0,4}(?:[-=]{1,2}>|[:\uff1a=]{1,2}|\b(?:is|was|are|be|would be|should be|must be)\b[ \t]{0,4}:?|(?=\n))"
    r"|<answer>|\#{4})",
    re.IGNORECASE,
)
_NEXT_QUESTION = re.compile(r"\squestion[ \t]{0,2}:|\n[ \t]{0,4}context[ \t]{0,2}:", re.IGNORECASE)
_TEMPLATE = re.compile(r"([^\n{}%]*)\{\{-?\s{0,4}answer\s{0,4}-?\}\}([^\n{}%]*)")
_NEGATIONS = ("not", "never", "isn  t", "isn't", "not  a", "not  an", "not  the")


def strip_thinking(text: str) -> str:
    """Text outside `<think>`: after the last closing tag, else before an opening tag that was never closed."""
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    return text.partition("<think>")[0].strip()


def fold_text(text: str) -> str:
    """NFKC with plain dashes and quotes, without invisible characters, bold or code marks and LaTeX text commands."""
    folded = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).translate(_PLAIN_MARKS)
    if "\\" in folded:
        folded = _LATEX_TEXT.sub(r"\1", folded)
    return _MARKUP.sub(" ", folded)


def fold_words(text: str) -> str:
    """Case-folded words joined by one space; punctuation, underscores and hyphens are spaces."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return re.sub(r"[\W_]+", " ", folded).strip()


def find_statements(text: str, template: str | None) -> list[str]:
    """What follows each answer marker, in the order of the text (the last 32), each up to the end of the text.

    Text from a new "Question:" on is left out when a marker stands before it: base models go on with invented rows.
    """
    frame = template_frame(template)
    found = _marker_spans(text, frame)
    if not found:
        return []
    following = _NEXT_QUESTION.search(text, found[0][0])
    end = following.start() if following else len(text)
    kept = [(a, min(b, end)) for a, b in found if a <= end][-_MAX_MARKERS:]
    return [_cut_suffix(text[a:b], frame) for a, b in kept]


def first_line(text: str) -> str:
    """First line that is not blank, trimmed; of a line without end the first 4,000 characters."""
    return text.lstrip()[:_MAX_LINE].partition("\n")[0].strip()


@lru_cache(maxsize=64)
def template_frame(template: str | None) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """Patterns for the literal words before and after `{{ answer }}`; spaces and case may vary."""
    match = _TEMPLATE.search(template) if template else None
    if match is None:
        return None, None
    before, after = (_words_pattern(part) for part in match.groups())
    return before, after


def _words_pattern(literal: str) -> re.Pattern[str] | None:
    parts = re.findall(r"\w+|[^\w\s]", literal)
    if len("".join(parts)) < 2:
        return None
    return re.compile(r"\s{0,3}".join(re.escape(part) for part in parts), re.IGNORECASE)


def _marker_spans(text: str, frame: tuple[re.Pattern[str] | None, re.Pattern[str] | None]) -> list[tuple[int, int]]:
    spans = [(m.end(), len(text)) for m in _MARKER.finditer(text)]
    if "\\boxed" in text:
        spans += [m.span(1) for m in _BOXED.finditer(text)]
    if frame[0] is not None:
        spans += [(m.end(), len(text)) for m in frame[0].finditer(text)]
    return sorted(set(spans))


def _cut_suffix(tail: str, frame: tuple[re.Pattern[str] | None, re.Pattern[str] | None]) -> str:
    match = frame[1].search(tail) if frame[1] is not None else None
    tail = tail[: match.start()] if match else tail
    return tail.partition("</answer>")[0]


class TextIndex:
    """Finds which of some known texts (labels, options) a text is, or contains.

    Keys have three levels, the strictest first: as written, without case and spacing, words alone. A key that two texts
    share is of no use at its level, so `c`, `c++` and `c#` stay apart.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._longest = max((len(text) for text in texts), default=0)
        self._levels = tuple(_unique_keys(texts, level) for level in _LEVELS)
        words = sorted(self._levels[2].items(), key=lambda item: -len(item[0]))
        self._words = [
            (_spread(key), index) for key, index in words if not (len(key) == 1 and key.isascii() and key.isalpha())
        ]

    def exact(self, text: str) -> int | None:
        """Position of the text that `text` is, or None."""
        if len(text) > 4 * self._longest + 64:
            return None
        for level, keys in zip(_LEVELS, self._levels, strict=True):
            found = keys.get(level(text))
            if found is not None:
                return found
        return None

    def contained(self, text: str) -> set[int]:
        """Positions of the texts that stand in `text` as whole words, longest first, without those after a "not"."""
        rest = f" {_spread(fold_words(text))} "
        found = set()
        for key, index in self._words:
            if key not in rest:
                continue
            if _is_spaceless(key):
                found.add(index)
                rest = rest.replace(key, "\0")
                continue
            for negation in _NEGATIONS:
                rest = rest.replace(f" {negation}  {key} ", " \0 ")
            if f" {key} " in rest:
                found.add(index)
                rest = rest.replace(f" {key} ", " \0 ")
        return found


@lru_cache(maxsize=4096)
def text_index(texts: tuple[str, ...]) -> TextIndex:
    """The index over `texts`, built once for each set."""
    return TextIndex(texts)


def _as_written(text: str) -> str:
    return text.strip()


def _without_case(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_LEVELS = (_as_written, _without_case, fold_words)


def _unique_keys(texts: Sequence[str], level: Callable[[str], str]) -> dict[str, int]:
    keys: dict[str, int] = {}
    shared = set()
    for index, text in enumerate(texts):
        key = level(text)
        if key in keys:
            shared.add(key)
        keys[key] = index
    return {key: index for key, index in keys.items() if key and key not in shared}


def _spread(words: str) -> str:
    """Two spaces between words, so that each word has its own on both sides when neighbours are replaced."""
    return words.replace(" ", "  ")


def _is_spaceless(key: str) -> bool:
    """Whether `key` is in a script that puts no spaces between words (Thai, Lao, Chinese, Japanese, also Korean)."""
    return any("\u0e00" <= ch <= "\u0eff" or ch >= "\u2e80" for ch in key)
