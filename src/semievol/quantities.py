"""Reads numbers out of text as exact fractions, and writes them in one canonical way.

Policy. Units and signs of them are dropped, never converted: "$1,234.50" is 1234.5, "12%" is 12 (not 0.12) and
"1.2 million" is 1.2. A point is the decimal mark; a comma, apostrophe or underscore before three digits groups
thousands, and "3,14" is not a number. "(5)" is 5: brackets are no minus sign. "1/2" and "1 1/2" are fractions. Number
words are not read. Numbers with more than 100 digits or an exponent beyond 400 are refused, so that no text can cost
much time.
"""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

_MAX_DIGITS = 100
_MAX_EXPONENT = 400
_SUPERSCRIPTS = {ord(sign): f"^{digit}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_CURRENCY = re.compile(r"[$£€¥₹]|\b(?:usd|eur|gbp|cny|inr)(?=\s?\d)", re.IGNORECASE)
_WORDPIECE_MARK = re.compile(r"(?<=\d)[ ]{1,3}([.,])[ ]{0,3}(?=\d)")
_THOUSANDS = re.compile(r"(?<=\d)[,'_](?=(?:\d{2},){0,8}\d{3}(?!\d))")
_NARROW_SPACES = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_POWER_OF_TEN = re.compile(r"(?<=\d)[ ]?(?:\u00d7|x|\*|\\times|\\cdot)[ ]?10[ ]?(?:\^|\*\*)[ ]?\{?([-+]?\d{1,6})\}?")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}")
_PLAIN = r"(?:\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?:(?<![\w.)\]])(?P<sign>[-+])[ ]{{0,2}})?(?<![A-Za-z^\d.])(?<!\d[,:])"
    rf"(?:(?P<whole>\d{{1,9}})[ ](?=\d{{1,9}}[ ]?/[ ]?\d))?"
    rf"(?P<digits>{_PLAIN})(?P<exponent>[eE][-+]?\d+)?(?:[ ]?/[ ]?(?P<below>{_PLAIN}))?(?![.,:]?\d|\^)"
)
_OPERATOR = re.compile(
    r"\s{0,3}(?:%\s{0,2})?(?:[-+*/=\u00d7\u00f7^]|x\s?\d|(?:or|to|and|plus|minus|times|divided)\b)", re.IGNORECASE
)
_RANGE = re.compile(r"\s{0,3}(?:%\s{0,2})?(?:or|to|and|[-,;])?\s{0,3}\d[\d.,]{0,40}\s{0,3}%?\W{0,8}$", re.IGNORECASE)


def tidy_numbers(text: str) -> str:
    """Text with plain dashes, without currency signs and thousands separators, powers of ten as `e`."""
    text = _NARROW_SPACES.sub("", text).replace("\u00bc", " 1/4").replace("\u00bd", " 1/2").replace("\u00be", " 3/4")
    text = unicodedata.normalize("NFKC", text.translate(_SUPERSCRIPTS)).translate(
        {0x2212: "-", 0x2013: "-", 0x2044: "/"}
    )
    if "\\" in text:
        text = _LATEX_FRACTION.sub(r"\1/\2", text).replace("\\$", "$").replace("\\%", "%").replace("\\,", "")
    text = _WORDPIECE_MARK.sub(r"\1", _CURRENCY.sub(" ", text))
    return _POWER_OF_TEN.sub(r"e\1", _THOUSANDS.sub("", text))


def read_number(text: str) -> Fraction | None:
    """The one number that `text` consists of, with or without a currency or percent sign; else None."""
    tidy = tidy_numbers(text).strip().removesuffix("%").strip().removesuffix(".")
    match = _NUMBER.fullmatch(tidy)
    return None if match is None else _as_fraction(match)


def read_statement(text: str) -> Fraction | None:
    """The number that a final statement gives: the first where the statement begins with it, else the last.

    "42 because 6 * 7" gives 42, "6 * 7 = 42" gives 42, "3 or 5", "3-5" and "3, 5" give None.
    """
    tidy = tidy_numbers(text).strip()
    first = _NUMBER.match(tidy.lstrip("*_([{\"' #:"))
    if first is not None:
        rest = first.string[first.end() :]
        if _RANGE.match(rest):
            return None
        if not _OPERATOR.match(rest):
            return _as_fraction(first)
    return _last(tidy)


def last_number(text: str) -> Fraction | None:
    """The last number in `text`; None without one, and where `text` is a range such as "3-5"."""
    tidy = tidy_numbers(text).strip()
    first = _NUMBER.match(tidy)
    return None if first is not None and _RANGE.match(tidy, first.end()) else _last(tidy)


def write_number(value: Fraction) -> str:
    """Canonical text: a plain decimal where it ends, else a reduced fraction such as 1/3."""
    below = value.denominator
    twos = (below & -below).bit_length() - 1
    rest, fives = below >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{value.numerator}/{below}"
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // below).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else sign + digits


def numbers_agree(a: Fraction, b: Fraction, tolerance: float) -> bool:
    """Whether |a - b| <= tolerance * max(|a|, |b|), worked out exactly."""
    return abs(a - b) <= Fraction(tolerance) * max(abs(a), abs(b))


def _last(tidy: str) -> Fraction | None:
    last = None
    for match in _NUMBER.finditer(tidy):
        last = match
    return None if last is None else _as_fraction(last)


def _as_fraction(match: re.Match[str]) -> Fraction | None:
    sign, whole, digits, exponent, below = match.group("sign", "whole", "digits", "exponent", "below")
    if len(digits) > _MAX_DIGITS or len(below or "") > _MAX_DIGITS or len(exponent or "") > 5:
        return None
    power = int(exponent[1:]) if exponent else 0
    divisor = Fraction(Decimal(below)) if below else Fraction(1)
    if abs(power) > _MAX_EXPONENT or divisor == 0:
        return None
    value = Fraction(Decimal(digits)) * Fraction(10) ** power / divisor + int(whole or 0)
    return -value if sign == "-" else value
