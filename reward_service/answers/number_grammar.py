"""The grammar of one calculation, whose value is exact or refused: 1 1/2, 6.02 x 10^23, -(3 + 4)/2, 2^10. Reads tokens
of the plain notation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from rollcall.reward_service.answers import exact_numbers as exact
from rollcall.reward_service.answers.exact_numbers import Number
from rollcall.reward_service.answers.number_words import FUNCTIONS
from rollcall.reward_service.answers.plain_notation import EN_DASH, MINUS

_MAX_DEPTH = 12  # of brackets in brackets
# Latin, Greek (without pi) and Cyrillic: digits behind these belong to the word (H2O). Other scripts part no words.
_LETTER = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03bf\u03c1-\u03ff\u0400-\u04ff"
_TOKEN = re.compile(
    rf"""
    (?P<number>[1-9][0-9]{{0,2}}(?:\ [0-9]{{3}})+(?![0-9,._])(?:[eE]\b)?
      |(?:[0-9]+(?:[.,_'\u2019][0-9]+)*|(?<![\w.])\.[0-9]+)(?:[eE][-+{MINUS}]?[0-9]{{1,4}}(?![\w.]*[0-9]))?)
    |(?P<word>[{_LETTER}](?:[{_LETTER}0-9_]|(?<=[0-9])\.(?=[0-9])|['\u2019-](?=[{_LETTER}0-9]))*)
    |(?P<command>\\[A-Za-z]+)
    |(?P<line>\n)
    |(?P<sign>\S)
    """,
    re.VERBOSE,
)
_WESTERN = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_INDIAN = re.compile(r"[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?")
_PARTED = re.compile(
    r"[1-9][0-9]{0,2}(?:(?:_[0-9]{3})+|(?:'[0-9]{3})+|(?:\u2019[0-9]{3})+|(?: [0-9]{3})+)(?:\.[0-9]+)?"
)
_SIMPLE = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")

CLOSING = {"(": ")", "[": "]", "{": "}"}
_BEGINNING = {"-", "+", "±", MINUS, EN_DASH, *CLOSING}
_MOST_SIGNS = 40  # and brackets before a number


@dataclass(frozen=True, slots=True)
class Token:
    kind: str  # number, word, command, line, sign
    text: str
    gap: bool  # white space before it

    @property
    def is_letter(self) -> bool:
        return self.kind == "word" and len(self.text) == 1


@dataclass(frozen=True, slots=True)
class Value:
    number: Number
    literal: bool = False  # digits alone: 5-7 may be a range, 5 x 7 a size
    scaled: bool = False  # a power, as in 6 x 10^23
    composed: bool = False  # of several: 2 + 3 million has two readings


END = Token("end", "", True)
REFUSED = Value(None)


def tokens_of(text: str) -> list[Token]:
    tokens, end = [], 0
    for found in _TOKEN.finditer(text):
        tokens.append(Token(str(found.lastgroup), found[0], found.start() > end))
        end = found.end()
    return tokens


class Grammar:
    """A place among tokens, and what can be read from there."""

    def __init__(self, tokens: Sequence[Token], *, maths: bool, alone: bool) -> None:
        self._tokens = tokens
        self._maths = maths
        self._alone = alone
        self.at = 0

    @property
    def ended(self) -> bool:
        return self.at >= len(self._tokens)

    def token(self, ahead: int = 0) -> Token:
        """END before the first and behind the last."""
        place = self.at + ahead
        return self._tokens[place] if 0 <= place < len(self._tokens) else END

    def is_(self, *texts: str, ahead: int = 0) -> bool:
        return self.token(ahead).text in texts

    def starts(self, ahead: int = 0) -> bool:
        """Whether a number, or a formula without a known value, begins there."""
        for place in range(ahead, ahead + _MOST_SIGNS):
            token = self.token(place)
            if token.kind == "number" or token.text in ("\\frac", "\\sqrt", "√", "π", "∞"):
                return True
            if token.text not in _BEGINNING and token.text.lstrip("\\") not in FUNCTIONS:
                return False
        return False

    def sum(self, depth: int = 0) -> Value:
        """Reads a calculation; `starts()` holds. Afterwards `at` stands behind it."""
        left = self._product(depth)
        while self.is_("+", "-", MINUS, EN_DASH, "±"):
            operator, after = self.token(), self.token(1)
            if not self.starts(1) or (operator.gap and not after.gap and not self._maths and operator.text != EN_DASH):
                break  # 3 -5 is two numbers
            self.at += 1
            right = self._product(depth)
            a_range = operator.text == "-" and not operator.gap and left.literal and right.literal
            if a_range or operator.text in (EN_DASH, "±") or operator.gap != after.gap:
                left = REFUSED
            else:
                term = right.number if operator.text == "+" else exact.negate(right.number)
                left = Value(exact.add(left.number, term), composed=True)
        return left

    def _product(self, depth: int) -> Value:
        left = self._signed(depth)
        num_slashes = 0
        while self.is_("*", "/", "×", "x", "X") and self.starts(1):
            operator = self.token().text
            self.at += 1
            right = self._signed(depth)
            if operator == "/":
                num_slashes += 1
                value = exact.divide(left.number, right.number)
                left = Value(value, composed=True) if num_slashes == 1 else REFUSED
            elif operator == "*" or left.scaled or right.scaled:
                scaled = left.scaled or right.scaled
                left = Value(exact.multiply(left.number, right.number), scaled=scaled, composed=not scaled)
            else:
                left = REFUSED  # 5 x 7 may be a size
        return left

    def _signed(self, depth: int) -> Value:
        negative = False
        num_signs = 0
        while self.is_("-", "+", MINUS, EN_DASH, "±"):
            negative ^= not self.is_("+")
            num_signs += 1 + 2 * self.is_("±")
            self.at += 1
        value = self._power(depth)
        if num_signs == 0:
            return value
        if num_signs > 2:
            return REFUSED
        return replace(value, number=exact.negate(value.number) if negative else value.number)

    def _power(self, depth: int) -> Value:
        base = self._atom(depth)
        while self._maths and self.is_("!") and not self.is_("=", ahead=1):
            self.at += 1
            base = REFUSED if self.is_("!") else Value(exact.factorial(base.number))
        if not self.is_("^"):
            return base
        self.at += 1
        if not self.starts():
            self.skip_argument()
            return REFUSED
        exponent = self._signed(depth + 1) if depth < _MAX_DEPTH else REFUSED
        return Value(exact.power(base.number, exponent.number), scaled=True)

    def _atom(self, depth: int) -> Value:
        """A number, a bracket or a function; refused where another factor follows without a sign: 2(3), 3√2, 2π."""
        value = self._factor(depth)
        token = self.token()
        if token.text in CLOSING and (token.gap or not self.starts()):
            return value
        if token.text in ("√", "π", "∞", "\\sqrt", "\\frac", *CLOSING):
            if depth < _MAX_DEPTH:
                self._power(depth + 1)
            return REFUSED
        return value

    def _factor(self, depth: int) -> Value:
        token = self.token()
        self.at += 1
        if token.kind == "number":
            return self._whole_or_mixed(token, depth)
        if token.text in CLOSING:
            return self._bracket(token.text, depth)
        if token.text == "\\frac":
            return Value(self._fraction(depth))
        if token.text in ("\\sqrt", "√", "sqrt", "cbrt"):
            degree = Value(Fraction(3 if token.text == "cbrt" else 2))
            if token.text == "\\sqrt" and self.is_("["):
                self.at += 1
                degree = self._bracket("[", depth)
            known = degree.number is not None and degree.number.denominator == 1
            inside = self._argument(depth, whole=True).number
            return Value(exact.root(inside, int(degree.number or 0)) if known else None)
        if self.starts():  # of a function
            self._argument(depth, whole=True)
        return REFUSED

    def _fraction(self, depth: int) -> Number:
        return exact.divide(self._argument(depth).number, self._argument(depth).number)

    def _whole_or_mixed(self, token: Token, depth: int) -> Value:
        whole = _literal(token.text, alone=self._alone)
        if not token.text.isdecimal():
            return Value(whole, literal=True)
        if self.is_("\\frac"):
            self.at += 1
            part = self._fraction(depth)
            proper = part is not None and 0 < part < 1
            return Value(exact.add(whole, part) if proper else None)
        top, slash, bottom = self.token(), self.token(1), self.token(2)
        plain_fraction = top.kind == bottom.kind == "number" and slash.text == "/" and self.token(3).text != "/"
        if not (plain_fraction and top.text.isdecimal() and bottom.text.isdecimal()):
            return Value(whole, literal=True)
        self.at += 3
        part = exact.divide(_literal(top.text, alone=True), _literal(bottom.text, alone=True))
        mixed = part is not None and 0 < part < 1 and (self._alone or exact.ends(part))  # 11 5/6 may be two numbers
        return Value(exact.add(whole, part) if mixed else None)

    def _bracket(self, opening: str, depth: int) -> Value:
        """After the opening bracket. Of what is no single number, everything up to the closing one is passed over."""
        if depth < _MAX_DEPTH and self.starts():
            inside = self.sum(depth + 1)
            if self.is_(CLOSING[opening]):
                self.at += 1
                grouped = inside.literal and "," in self.token(-2).text and opening == "("  # (1,234) may be a pair
                return REFUSED if grouped else replace(inside, literal=False)
        self._skip_to(CLOSING[opening], opening)
        return REFUSED

    def _argument(self, depth: int, *, whole: bool = False) -> Value:
        """Of a command: in braces, or one digit (all digits for whole=True)."""
        token = self.token()
        if token.text in ("{", "("):
            self.at += 1
            return self._bracket(token.text, depth)
        if token.kind == "number" and token.text.isdecimal():
            self.at += 1
            if whole or len(token.text) == 1:
                return Value(_literal(token.text, alone=True))
            rest = Token("number", token.text[1:], gap=False)
            self.at -= 1
            self._tokens = [*self._tokens[: self.at], rest, *self._tokens[self.at + 1 :]]
            return Value(Fraction(int(token.text[0])))
        if self.starts() and depth < _MAX_DEPTH:
            return Value(self._signed(depth + 1).number)
        return REFUSED

    def skip_argument(self) -> None:
        """Passes over a token, or what stands in brackets."""
        opening = self.token().text
        self.at += 1
        if opening in CLOSING:
            self._skip_to(CLOSING[opening], opening)

    def _skip_to(self, closing: str, opening: str) -> None:
        depth = 1
        while self.at < len(self._tokens) and depth:
            depth += self.is_(opening) - self.is_(closing)
            self.at += 1


def _literal(digits: str, *, alone: bool) -> Number:
    """What digits mean; None where their commas, points and spaces have no one reading."""
    mantissa, _, exponent = digits.lower().replace(MINUS, "-").partition("e")
    if len(mantissa) > 2 * exact.MAX_DIGITS or (exponent and abs(int(exponent)) > exact.MAX_DIGITS):
        return None
    if " " in mantissa and not alone and mantissa.count(" ") < 2 and " 0" not in mantissa:
        return None
    if not any(form.fullmatch(mantissa) for form in (_SIMPLE, _WESTERN, _INDIAN, _PARTED)):
        return None
    number = Fraction(re.sub(r"[,_'\u2019 ]", "", mantissa))
    return exact.bounded(number * Fraction(10) ** int(exponent or 0))
