"""Reads which option of a choice row a text names: its letter, or its wording.

Traps it knows: the article "a" and the pronoun "I" are no letters, "not B" is not B, "A or B" is no verdict, and a
letter that the row does not have is an answer that cannot be used, not a reason to look elsewhere.
"""

import re

from semievol.statements import find_statements, first_line, fold_text, fold_words, text_index
from semievol.types import choice_letter

_WORD = r"([A-Za-z]{1,3})(?![A-Za-z0-9_]|'\w)"
_LEADING = re.compile(
    rf"[\W_]*(?:(?:option|choice|letter)\s{{0,3}}[:(\[\"']?\s{{0,2}})?{_WORD}(.*)", re.IGNORECASE | re.DOTALL
)
_ALSO = re.compile(
    rf"[)\]\"'\s]{{0,4}}(?:[,;/&+]|\b(?:or|and)\b)[\s,]{{0,3}}(?:(?:or|and)\b\s{{0,3}})?[\s(\[\"']{{0,4}}{_WORD}(.*)",
    re.DOTALL,
)
_DELIMITED = re.compile(r"\s*(?:$|[.):\]},;/\"'=]|-(?:\s|$))")
_SUPPORTED = re.compile(r"\s*(?:is|was|because|since|as|or|and)\b|\s*\(")
_MENTION = re.compile(rf"(?<![A-Za-z0-9_']){_WORD}")
_NAMED_BEFORE = re.compile(
    r"(?:\b(?:option|choice|letter|answer)\s{0,3}[:(\[\"']{0,2}\s{0,2}|[(\[]\s{0,2})$", re.IGNORECASE
)
_NEGATED_BEFORE = re.compile(
    r"(?:\b(?:not|never|nor|neither|cannot)|n't)(?:\s{1,2}be)?(?:\s{1,2}(?:option|choice|answer))?\s{1,3}[(\[\"']?\s?$",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    rf"(?<![A-Za-z0-9_']){_WORD}[)\]\"'.]{{0,2}}\s{{1,3}}(?:is|must be|should be|would be)\s{{1,3}}"
    r"(?:the\s{1,3})?(?:most\s{1,3})?(?:correct|right|best|true)\b",
    re.IGNORECASE,
)
_PICK = re.compile(r"\b(?:choose|chose|select|pick|go with|going with)\b:?", re.IGNORECASE)
_ARTICLES = ("A", "I")


def read_letter(text: str, choices: tuple[str, ...], template: str | None) -> str | None:
    """Letter of the option that `text` settles on, or None.

    Order: the last answer statement that names an option; then "B is correct" and "I choose B"; then the first and last
    line; then a single option named anywhere. Two options without a verdict, or a letter out of range, give None.
    """
    letters = tuple(choice_letter(i) for i in range(len(choices)))
    folded = fold_text(text)
    for statement in reversed(find_statements(folded, template)):
        named = name_options(first_line(statement), choices, letters)
        if named:
            return _only(named, letters)
    verdicts = [m.group(1).upper() for m in _VERDICT.finditer(folded) if m.group(1).isupper()]
    if verdicts:
        return _only({verdicts[-1]}, letters)
    picks = list(_PICK.finditer(folded))
    named = name_options(first_line(folded[picks[-1].end() :]), choices, letters) if picks else set()
    if named:
        return _only(named, letters)
    return _read_unmarked(folded, choices, letters)


def name_options(statement: str, choices: tuple[str, ...], letters: tuple[str, ...]) -> set[str]:
    """Letters that one statement names; one out of range is among them, so that it is not overlooked."""
    return _name_outright(statement, choices, letters) or _name_anywhere(statement, choices, letters)


def _read_unmarked(text: str, choices: tuple[str, ...], letters: tuple[str, ...]) -> str | None:
    whole = _whole(text, choices, letters)
    if whole:
        return _only(whole, letters)
    lines = text.strip().split("\n")
    named = _name_outright(lines[0], choices, letters) | _name_outright(lines[-1], choices, letters)
    return _only(named or _name_anywhere(text, choices, letters), letters)


def _only(named: set[str], letters: tuple[str, ...]) -> str | None:
    return next(iter(named)) if len(named) == 1 and named <= set(letters) else None


def _whole(text: str, choices: tuple[str, ...], letters: tuple[str, ...]) -> set[str]:
    core = re.sub(r"^[\W_]+|[\W_]+$", "", text[:40]).upper() if len(text) < 40 else ""
    if core in letters:
        return {core}
    found = text_index(choices).exact(text)
    if found is not None:
        return {letters[found]}
    return {core} if len(core) == 1 and core.isascii() and core.isalpha() else set()


def _name_outright(statement: str, choices: tuple[str, ...], letters: tuple[str, ...]) -> set[str]:
    """Letters of a statement that is an option, or begins with one ("B", "(b)", "B) positive", "Option C, because")."""
    whole = _whole(statement, choices, letters)
    match = None if whole else _LEADING.match(statement)
    if match is None:
        return whole
    word, rest = match.groups()
    letter = word.upper()
    delimited = _DELIMITED.match(rest) is not None
    if letter not in letters:
        return {letter} if len(word) == 1 and word.isupper() and delimited else set()
    option = fold_words(choices[letters.index(letter)])
    if option and fold_words(rest[: 4 * len(option) + 64]).startswith(option):
        return {letter}
    if not delimited and not _SUPPORTED.match(rest) and (word.islower() or letter in _ARTICLES):
        return set()
    if letter == "I" and rest.startswith(","):
        return set()
    also = _ALSO.match(rest)
    if also is not None and also.group(1).upper() in letters and also.group(1).upper() != letter:
        ends = _DELIMITED.match(also.group(2)) is not None
        if ends or (also.group(1).isupper() and also.group(1) != "I"):
            return {letter, also.group(1).upper()}
    others = set() if delimited else {letters[i] for i in text_index(choices).contained(rest)}
    return {letter} | others


def _name_anywhere(text: str, choices: tuple[str, ...], letters: tuple[str, ...]) -> set[str]:
    """Letters and wordings of options anywhere in `text`, without negated ones and without letters inside wordings."""
    named = {letters[i] for i in text_index(choices).contained(text)}
    masked = _mask(text, choices)
    for match in _MENTION.finditer(masked):
        word = match.group(1)
        if word.upper() not in letters:
            continue
        before = masked[max(0, match.start() - 24) : match.start()]
        if _NEGATED_BEFORE.search(before):
            continue
        delimited = _DELIMITED.match(masked, match.end()) is not None
        if word in _ARTICLES:
            clear = delimited and not (word == "I" and masked.startswith(",", match.end()))
        else:
            clear = word.isupper()
        if clear or (_NAMED_BEFORE.search(before) and delimited):
            named.add(word.upper())
    return named


def _mask(text: str, choices: tuple[str, ...]) -> str:
    """`text` with the wording of the options (of three characters or more) blanked out."""
    lowered = text.lower()
    wordings = {choice.strip().lower() for choice in choices if len(choice.strip()) > 2}
    for wording in sorted(wordings, key=lambda wording: (-len(wording), wording)):
        if wording in lowered:
            text = re.sub(re.escape(wording), " ", text, flags=re.IGNORECASE)
    return text
