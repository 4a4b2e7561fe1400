"""Texts of people and models in one plain notation: Unicode's forms of digits, signs and fractions, and LaTeX's of
numbers. In time proportional to a text's length."""

from __future__ import annotations

import re
import unicodedata

MINUS = "\u2212"
EN_DASH = "\u2013"

_DIGITS_UP, _DIGITS_DOWN = "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉"
_UP = str.maketrans(_DIGITS_UP + "⁺⁻", "0123456789+-")
_DOWN = str.maketrans(_DIGITS_DOWN, "0123456789")


def _characters() -> dict[int, str]:
    table = {0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)}  # full width
    table |= {0x1D7CE + index: str(index % 10) for index in range(50)}  # mathematical digits
    table |= dict.fromkeys(map(ord, "\ufe63\u2796"), MINUS) | dict.fromkeys(map(ord, "\u2010\u2011"), "-")
    table |= dict.fromkeys(map(ord, "\u2012"), EN_DASH) | {ord("\u2015"): "\u2014"}
    table |= dict.fromkeys(map(ord, "\u2044\u2215÷"), "/") | dict.fromkeys(map(ord, "·⋅∙∗"), "*")
    table |= dict.fromkeys(map(ord, "✕⨯"), "×") | dict.fromkeys(map(ord, "≃≅∼"), "≈") | {ord("∶"): ":"}
    table |= dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u200e\u200f\u00ad"), "")
    for character in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞":
        top, _, bottom = unicodedata.normalize("NFKC", character).partition("\u2044")
        table[ord(character)] = rf"\frac{{{top}}}{{{bottom}}}"
    return table


_CHARACTERS = _characters()
# Between digits these part thousands, whatever else they are elsewhere.
_GROUPED = re.compile(
    r"(?<![A-Za-z0-9_.,])[0-9]{1,3}(?:(?:[\u00a0\u2007\u2009\u200a\u202f~_'\u2019]|\\[,;:! ])+[0-9]{3})+(?![0-9])"
)
_BETWEEN = re.compile(r"[^0-9]+")
_CURRENCY = "$€£¥₹₽₩"
_SHORT = {"k": "thousand", "m": "million", "b": "billion", "mn": "million", "bn": "billion"}
_MONEY = re.compile(rf"([{_CURRENCY}]\s?[0-9][0-9.,_]*)(k|K|m|M|b|B|mn|bn)\b")
_STEPS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\", "\n"),
        (r"<<[^<>\n]{0,200}>>", ""),  # GSM8K's notes to a calculator
        (r"</?[A-Za-z][^<>\n]{0,40}>", " "),
        (r"\\[()\[\]]", "$"),
        (r"\\([$%#{}&])", r"\1"),
        (r"\{,\}|(?<=[0-9]),\\!(?=[0-9])", ","),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:left|right|displaystyle|textstyle|[bB]igg?[lr]?)(?![A-Za-z])", ""),
        (r"\\(?:boxed|fbox)\s*(?=\{)", ""),
        (r"\s*\\times(?![A-Za-z])\s*", "×"),
        (r"\s*\\(?:cdot|ast)(?![A-Za-z])\s*", "*"),
        (r"\s*\\div(?![A-Za-z])\s*", "/"),
        (r"\\(?:approx|simeq|sim|cong)(?![A-Za-z])", "≈"),
        (r"\\(?:pm|mp)(?![A-Za-z])", "±"),
        (r"\\(?:leq?|leqslant)(?![A-Za-z])", "≤"),
        (r"\\(?:geq?|geqslant)(?![A-Za-z])", "≥"),
        (r"\\neq?(?![A-Za-z])", "≠"),
        (r"\\(?:pi)(?![A-Za-z])", "π"),
        (r"\\infty(?![A-Za-z])", "∞"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])", "°"),
        (r"\\[cl]?dots(?![A-Za-z])|\.{2,}", "…"),
        (r"(?<=[0-9)}])\*\*(?=[-0-9({])", "^"),
        (r"\*\*+|`", " "),
        (r"\b(?:Rs|USD|EUR|GBP|INR)\.?(?=[0-9])", " "),
        (r"(?<![\w)}\]])__?([0-9][^_\n]{0,60})__?(?!\w)", r" \1 "),
    )
)
_WORDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|textnormal|texttt|emph|mbox|mathrm|mathbf|mathit|mathsf|operatorname|"
    r"boldsymbol|bm|underline)\s*\{([^{}]*)\}"
)
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad(?![A-Za-z])|[\t\r\f\v\u00a0\u2000-\u200a\u202f\u3000]")
_SIGNED_MONEY = re.compile(rf"(?<=[-+*/^,:=({{\u2212\u2013])\s?[{_CURRENCY}]\s?|[{_CURRENCY}](?=[-+*/^,:\u2212\u2013])")
_MONEY_SIGN = re.compile(rf"[{_CURRENCY}]")
_RUN_UP = re.compile(rf"[{_DIGITS_UP}⁺⁻]+")
_RUN_DOWN = re.compile(rf"[{_DIGITS_DOWN}]+")


def ascii_signs(text: str) -> str:
    r"""Unicode's digits, signs and fractions as ASCII and LaTeX write them: `½` is `\frac{1}{2}`, `10⁶` is `10^{6}`."""
    text = text.translate(_CHARACTERS)
    text = _RUN_UP.sub(lambda run: "^{" + run[0].translate(_UP) + "}", text)
    return _RUN_DOWN.sub(lambda run: "_{" + run[0].translate(_DOWN) + "}", text)


def with_thousands_parted_by(separator: str, text: str) -> str:
    """Of thousands that something else than commas parts: 1 234 with a space that does not break, 1_234, 1~234."""
    return _GROUPED.sub(lambda group: _BETWEEN.sub(separator, group[0]), text)


def plain(text: str) -> str:
    r"""The text with ASCII digits, `\frac` for every sign of a fraction, `^{...}` for what is raised, `_` between
    thousands that anything but commas parted, and without LaTeX's dollars, spaces, fonts and sizes."""
    text = with_thousands_parted_by("_", ascii_signs(text))
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    for _ in range(3):  # a font within a font
        text = _WORDS.sub(r" \1 ", text)
    text = _SPACES.sub(" ", text)
    text = _MONEY.sub(lambda money: f"{money[1]} {_SHORT[money[2].lower()]}", text)
    return _MONEY_SIGN.sub(" ", _SIGNED_MONEY.sub("", text))
