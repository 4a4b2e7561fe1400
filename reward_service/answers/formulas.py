"""Formulas as math-verify's parser reads them right: what people write beside LaTeX, as LaTeX."""

from __future__ import annotations

import re
from fractions import Fraction

from rollcall.reward_service.answers.plain_notation import MINUS, ascii_signs, with_thousands_parted_by

# A dollar opens a formula where no space follows it, and closes one where none precedes and no digit follows: the rest
# are money ($5 and $7).
_FORMULA = re.compile(r"\$\$|(?<!\\)\$(?=\S)[^$\n]{0,2000}(?<=[^\s\\])\$(?!\d)|\\\(|\\\[")
_BOXED = re.compile(r"\\boxed\{")
_NUMERIC = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?\s?%?")
_POWER_IN_BRACKETS = re.compile(r"\^\(([^()]*)\)")
_MIXED = re.compile(r"(?<![\d.,/^_{}\\])(\d{1,9})\s+(\d{1,9})\s?/\s?(\d{1,9})(?![\d/^])(?!\.\d)")
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,4})(?![\w.]*\d)")
_REPEATING = re.compile(r"(?<![\d.,])(\d{0,9})\.(\d{0,15})\\(?:overline|bar)\s*\{?(\d{1,15})\}?")
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_UNARY = re.compile(r"(?<![\w)}\]])-\s+(?=[\d.\\])")


def has_formula(text: str) -> bool:
    """Whether a part of the text is marked as a formula."""
    return _FORMULA.search(text) is not None or _BOXED.search(text) is not None


def normalised(text: str) -> str:
    r"""The text with numbers as the parser takes them: 1,234 for 1\,234, \frac{40}{9} for 4 4/9, -5 for − 5."""
    text = ascii_signs(text).replace(MINUS, "-").replace("\\$", "")
    text = re.sub(r"\\(boxed|fbox)\s*\{", r"\\boxed{", text)
    text = with_thousands_parted_by("", text)
    text = _MIXED.sub(_as_fraction, text)
    text = _REPEATING.sub(_as_repeating, text)
    return _UNARY.sub("-", _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text))


def as_latex(text: str) -> str:
    """A formula that stands alone, between dollars; plain notation (2*x**2) as LaTeX writes it."""
    text = normalised(text).strip().rstrip(".")
    if text.startswith("$") and text.count("$") == 1:
        text = text[1:]  # money
    if has_formula(text) or _NUMERIC.fullmatch(text):
        return text
    text = _PI.sub(r"\\pi ", text).replace("**", "^").replace("*", r" \cdot ").replace("$", "")
    return "$" + _POWER_IN_BRACKETS.sub(r"^{(\1)}", text) + "$"


def _as_fraction(mixed: re.Match[str]) -> str:
    whole, top, bottom = (int(part) for part in mixed.groups())
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}" if 0 < top < bottom else mixed[0]


def _as_repeating(found: re.Match[str]) -> str:
    whole, before, period = found.groups()
    number = Fraction(int(whole + before or "0"), 10 ** len(before))
    number += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(before))
    return rf"\frac{{{number.numerator}}}{{{number.denominator}}}"
