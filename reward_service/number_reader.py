"""The numbers that stand in a text, as a person reads them: 1 1/2, 6.02 x 10^23, 2 * 3 = 6, 5 million. What may be read
in two ways, or has no exact value, is found and refused. Must never know which part of a text is its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from rollcall.reward_service import exact_numbers as exact
from rollcall.reward_service.exact_numbers import Number
from rollcall.reward_service.plain_notation import EN_DASH, MINUS, plain

MAX_CHARACTERS = 4000  # of one text; a longer one is cut, or refused
_MAX_DEPTH = 12  # of brackets in brackets
_LETTER = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03bf\u03c1-\u03ff\u0400-\u04ff"  # without pi; other scripts part their words not
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

_MULTIPLIERS = {
    **dict.fromkeys(("hundred", "hundreds"), 10**2),
    **dict.fromkeys(("thousand", "thousands"), 10**3),
    **dict.fromkeys(("lakh", "lakhs", "lac"), 10**5),
    **dict.fromkeys(("million", "millions"), 10**6),
    **dict.fromkeys(("crore", "crores"), 10**7),
    **dict.fromkeys(("billion", "billions"), 10**9),
    **dict.fromkeys(("trillion", "trillions"), 10**12),
    **dict.fromkeys("万萬만", 10**4),
    **dict.fromkeys("亿億억", 10**8),
}
_PERCENT = {"%", "percent", "percentage", "pct"}
_FUNCTIONS = {"sqrt", "cbrt", "sin", "cos", "tan", "cot", "log", "ln", "lg", "exp", "arcsin", "arccos", "arctan"}
# After a number these say that it is not all: "3 squared", "2 pi", "5 out of 6", "2 times 3".
_CONTINUED = {"pi", "squared", "cubed", "factorial", "out", "plus", "minus", "times", "divided", "over", "mod"}
_LINKING = {"of", "by", "from"}  # 5 out of 6, 6 divided by 2
_JOINED = {"and", "or", "to", "through", "versus", "vs", "&"}
_PARTS = {"half", "third", "quarter", "halves", "thirds", "quarters", "a", "one", "two", "three"}
_UNIT_LETTERS = set("mshdgtlLNJWVACFKPp")  # metre, second, ... ; other single letters are unknowns
_SHORT_UNITS = set(
    "cm mm km nm um dm kg mg ug ml mL cl dl kl kL ft in yd mi lb lbs oz hr hrs min sec ms ns rad deg mph kph kmh km/h "
    "Hz kHz MHz GHz kW MW kJ MJ cal kcal st nd rd th am pm AM PM USD EUR GBP INR RM pt pts cc mol Pa kPa eV MB GB KB".split()
)
_SIZES = {
    **dict.fromkeys(
        ("hour", "hours", "hr", "hrs", "h", "minute", "minutes", "min", "mins", "second", "seconds"), "time"
    ),
    **dict.fromkeys(("sec", "s", "day", "days", "week", "weeks", "month", "months", "year", "years"), "time"),
    **dict.fromkeys(("foot", "feet", "ft", "inch", "inches", "in", "yard", "yards", "mile", "miles"), "length"),
    **dict.fromkeys(("m", "cm", "mm", "km", "metres", "meters", "metre", "meter", "centimeters"), "length"),
    **dict.fromkeys(("dollar", "dollars", "cent", "cents", "pound", "pounds", "pence", "euro", "euros"), "money"),
    **dict.fromkeys(("ounce", "ounces", "oz", "lb", "lbs", "kg", "g", "grams", "kilograms", "stone"), "mass"),
}
_SAYING = {"is", "are", "was", "be", "equals", "equal", "gives", "get", "gets", "by", "answer", "total", "to", "of"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_BEGINNING = {"-", "+", "±", MINUS, EN_DASH, *_CLOSING}
_MOST_SIGNS = 40  # and brackets before a number


@dataclass(frozen=True, slots=True)
class Reading:
    """One number, or a chain of equal ones (2 * 3 = 6) of which the last counts."""

    value: Number  # None: refused
    percent: bool = False
    words_follow: bool = False


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, word, command, line, sign
    text: str
    gap: bool  # white space before it


@dataclass(frozen=True, slots=True)
class _Value:
    number: Number
    literal: bool = False  # digits alone: 5-7 may be a range, 5 x 7 a size
    scaled: bool = False  # a power, as in 6 x 10^23
    composed: bool = False  # of several: 2 + 3 million has two readings


_END = _Token("end", "", True)
_REFUSED = _Value(None)


def read_numbers(text: str, *, maths: bool = False, alone: bool = False, item: bool = False) -> list[Reading]:
    r"""All numbers in a text, in its order, chains and lists as one each.

    Args:
      maths: the text is a formula (a box), and an answer as a whole: 5! is 120, 2x is no number, 1 234 is one.
      alone: the text was marked as the answer: 1 234 is one number.
      item: the text is a line among others, so that "- 5" may be an item of a list.
    """
    return _Reader(_tokens(plain(text[-MAX_CHARACTERS:])), maths=maths, alone=alone or maths, item=item).readings()


def _tokens(text: str) -> list[_Token]:
    tokens, end = [], 0
    for found in _TOKEN.finditer(text):
        tokens.append(_Token(str(found.lastgroup), found[0], found.start() > end))
        end = found.end()
    return tokens


class _Reader:
    def __init__(self, tokens: Sequence[_Token], *, maths: bool, alone: bool, item: bool) -> None:
        self._tokens = tokens
        self._maths = maths
        self._alone = alone
        self._item = item
        self._at = 0

    # ---- what stands where

    def _token(self, ahead: int = 0) -> _Token:
        place = self._at + ahead
        return self._tokens[place] if 0 <= place < len(self._tokens) else _END

    def _is(self, *texts: str, ahead: int = 0) -> bool:
        return self._token(ahead).text in texts

    def _starts(self, ahead: int = 0) -> bool:
        """Whether a number, or a formula without a known value, begins there."""
        for place in range(ahead, ahead + _MOST_SIGNS):
            token = self._token(place)
            if token.kind == "number" or token.text in ("\\frac", "\\sqrt", "√", "π", "∞"):
                return True
            if token.text not in _BEGINNING and token.text.lstrip("\\") not in _FUNCTIONS:
                return False
        return False

    # ---- the grammar

    def _sum(self, depth: int) -> _Value:
        left = self._product(depth)
        while self._is("+", "-", MINUS, EN_DASH, "±"):
            operator, after = self._token(), self._token(1)
            if not self._starts(1) or (operator.gap and not after.gap and not self._maths and operator.text != EN_DASH):
                break  # 3 -5 is two numbers
            self._at += 1
            right = self._product(depth)
            a_range = operator.text == "-" and not operator.gap and left.literal and right.literal
            if a_range or operator.text in (EN_DASH, "±") or operator.gap != after.gap:
                left = _REFUSED
            else:
                term = right.number if operator.text == "+" else exact.negate(right.number)
                left = _Value(exact.add(left.number, term), composed=True)
        return left

    def _product(self, depth: int) -> _Value:
        left = self._signed(depth)
        num_slashes = 0
        while self._is("*", "/", "×", "x", "X") and self._starts(1):
            operator = self._token().text
            self._at += 1
            right = self._signed(depth)
            if operator == "/":
                num_slashes += 1
                value = exact.divide(left.number, right.number)
                left = _Value(value, composed=True) if num_slashes == 1 else _REFUSED
            elif operator == "*" or left.scaled or right.scaled:
                scaled = left.scaled or right.scaled
                left = _Value(exact.multiply(left.number, right.number), scaled=scaled, composed=not scaled)
            else:
                left = _REFUSED  # 5 x 7 may be a size
        return left

    def _signed(self, depth: int) -> _Value:
        negative = False
        num_signs = 0
        while self._is("-", "+", MINUS, EN_DASH, "±"):
            negative ^= not self._is("+")
            num_signs += 1 + 2 * self._is("±")
            self._at += 1
        value = self._power(depth)
        if num_signs == 0:
            return value
        if num_signs > 2:
            return _REFUSED
        return replace(value, number=exact.negate(value.number) if negative else value.number)

    def _power(self, depth: int) -> _Value:
        base = self._atom(depth)
        while self._maths and self._is("!") and not self._is("=", ahead=1):
            self._at += 1
            base = _REFUSED if self._is("!") else _Value(exact.factorial(base.number))
        if not self._is("^"):
            return base
        self._at += 1
        if not self._starts():
            self._skip_argument()
            return _REFUSED
        exponent = self._signed(depth + 1) if depth < _MAX_DEPTH else _REFUSED
        return _Value(exact.power(base.number, exponent.number), scaled=True)

    def _atom(self, depth: int) -> _Value:
        token = self._token()
        self._at += 1
        if token.kind == "number":
            return self._whole_or_mixed(token, depth)
        if token.text in _CLOSING:
            return self._beside(self._bracket(token.text, depth), depth)
        if token.text == "\\frac":
            return self._beside(_Value(exact.divide(self._argument(depth).number, self._argument(depth).number)), depth)
        if token.text in ("\\sqrt", "√", "sqrt", "cbrt"):
            degree = _Value(Fraction(3 if token.text == "cbrt" else 2))
            if token.text == "\\sqrt" and self._is("["):
                self._at += 1
                degree = self._bracket("[", depth)
            known = degree.number is not None and degree.number.denominator == 1
            inside = self._argument(depth, whole=True).number
            return self._beside(_Value(exact.root(inside, int(degree.number or 0)) if known else None), depth)
        if self._starts():  # of a function
            self._argument(depth, whole=True)
        return self._beside(_REFUSED, depth)

    def _whole_or_mixed(self, token: _Token, depth: int) -> _Value:
        whole = _literal(token.text, alone=self._alone)
        if not token.text.isdecimal():
            return self._beside(_Value(whole, literal=True), depth)
        if self._is("\\frac"):
            self._at += 1
            part = exact.divide(self._argument(depth).number, self._argument(depth).number)
            proper = part is not None and 0 < part < 1
            return self._beside(_Value(exact.add(whole, part) if proper else None), depth)
        top, slash, bottom = self._token(), self._token(1), self._token(2)
        plain_fraction = top.kind == bottom.kind == "number" and slash.text == "/" and self._token(3).text != "/"
        if not (plain_fraction and top.text.isdecimal() and bottom.text.isdecimal()):
            return self._beside(_Value(whole, literal=True), depth)
        self._at += 3
        part = exact.divide(_literal(top.text, alone=True), _literal(bottom.text, alone=True))
        mixed = part is not None and 0 < part < 1 and (self._alone or exact.ends(part))  # 11 5/6 may be two numbers
        return self._beside(_Value(exact.add(whole, part) if mixed else None), depth)

    def _beside(self, value: _Value, depth: int) -> _Value:
        """Refused where another factor follows without a sign: 2(3), 3√2, 2π."""
        token = self._token()
        if token.text in ("√", "π", "∞", "\\sqrt", "\\frac") or (token.text in ("(", "[", "{") and not token.gap):
            if token.text in _CLOSING and not self._starts():
                return value
            if depth < _MAX_DEPTH:
                self._power(depth + 1)
            return _REFUSED
        return value

    def _bracket(self, opening: str, depth: int) -> _Value:
        """After the opening bracket. Of what is no single number, everything up to the closing one is passed over."""
        if depth < _MAX_DEPTH and self._starts():
            inside = self._sum(depth + 1)
            if self._is(_CLOSING[opening]):
                self._at += 1
                grouped = inside.literal and "," in self._token(-2).text and opening == "("  # (1,234) may be a pair
                return _REFUSED if grouped else replace(inside, literal=False)
        self._skip_to(_CLOSING[opening], opening)
        return _REFUSED

    def _argument(self, depth: int, *, whole: bool = False) -> _Value:
        """Of a command: in braces, or one digit (all digits for whole=True)."""
        token = self._token()
        if token.text in ("{", "("):
            self._at += 1
            return self._bracket(token.text, depth)
        if token.kind == "number" and token.text.isdecimal():
            self._at += 1
            if whole or len(token.text) == 1:
                return _Value(_literal(token.text, alone=True))
            rest = _Token("number", token.text[1:], gap=False)
            self._at -= 1
            self._tokens = [*self._tokens[: self._at], rest, *self._tokens[self._at + 1 :]]
            return _Value(Fraction(int(token.text[0])))
        if self._starts() and depth < _MAX_DEPTH:
            return _Value(self._signed(depth + 1).number)
        return _REFUSED

    def _skip_argument(self) -> None:
        opening = self._token().text
        self._at += 1
        if opening in _CLOSING:
            self._skip_to(_CLOSING[opening], opening)

    def _skip_to(self, closing: str, opening: str) -> None:
        depth = 1
        while self._at < len(self._tokens) and depth:
            depth += self._is(opening) - self._is(closing)
            self._at += 1

    # ---- what stands around a number

    def readings(self) -> list[Reading]:
        found: list[Reading] = []
        while self._at < len(self._tokens):
            if not self._starts() or self._is_no_number():
                self._pass_over(found)
                continue
            refused = self._refused_by_what_precedes()
            begin = self._at
            reading = self._chain(refused)
            assert self._at > begin, "the reader stands still"
            found.append(reading)
        return found

    def _is_no_number(self) -> bool:
        """A subscript's, or a bracket that begins something else than a number: (5 apples)."""
        if self._token(-1).text.endswith("_") and self._at > 0:
            return True
        if self._token().text not in _CLOSING or self._maths:
            return False
        return not self._closes_after_numbers()

    def _closes_after_numbers(self) -> bool:
        depth = 0
        for place in range(self._at, min(self._at + 60, len(self._tokens))):
            token = self._tokens[place]
            depth += (token.text in _CLOSING) - (token.text in _CLOSING.values())
            if depth == 0:
                return True
            if token.kind in ("word", "line") or token.text in "=:":
                return False
        return False

    def _pass_over(self, found: list[Reading]) -> None:
        token = self._token()
        if token.text.endswith("_") and self._token(1).kind != "end":
            self._at += 1
            self._skip_argument()
        elif token.text == "^":
            self._at += 1
            self._skip_argument()
            found.append(Reading(None))  # x^2
        elif token.text in ("\\begin", "\\overline", "\\overbrace"):  # 0.\overline{3}
            self._at += 1
            self._skip_argument()
            found.append(Reading(None))
        else:
            self._at += 1

    def _refused_by_what_precedes(self) -> bool:
        """x < 5, x + 5, x/2; and a line's "- 5", which may be an item of a list."""
        sign, before = self._token(), self._token(-1) if self._at else _END
        if before.text in ("<", ">", "≤", "≥", "≠", "^") or (before.text == "|" and not sign.gap):
            return True
        if before.text == "\u2014":  # a dash between words, or a minus
            return not before.gap and not sign.gap
        if self._maths and (before.kind == "command" or (before.kind == "word" and len(before.text) == 1)):
            return True
        if before.text in ("*", "/", "×", "+") and self._at > 1:
            return self._token(-2).kind in ("word", "command") or self._token(-2).text in (")", "}", "]")
        if sign.text not in ("-", "+", MINUS, EN_DASH):
            return False
        spaced = self._token(1).gap
        if before.kind == "word":
            if self._maths or not sign.gap:
                return True
            return spaced and before.text.lower() not in _SAYING
        if before.text in (")", "}", "]"):
            return True
        return self._at == 0 and spaced and self._item

    def _chain(self, refused: bool) -> Reading:
        reading = self._one(refused)
        while True:
            if self._is("=", "≈") and (skipped := self._to_the_next_side()):
                self._at += skipped
                reading = self._one(False)
            elif joined := self._joined(reading):
                self._at += joined
                reading = self._one(refused=True)
            else:
                return reading

    def _to_the_next_side(self) -> int:
        """Tokens from an equals sign to the number behind it; 0 where there is none at once."""
        return 1 if self._starts(1) else 2 if self._token(1).text in ("=", "≈") and self._starts(2) else 0

    def _joined(self, reading: Reading) -> int:
        """Tokens to the next number of a list, a range or a sum with this one; 0 where it stands for itself."""
        token, following = self._token(), self._token(1)
        if token.text in (",", ";"):
            if following.text in ("and", "or", "&"):
                return 2 if self._starts(2) else 0
            if self._starts(1) and (self._alone or not self._words_after_next(1)):
                return 1
            if following.kind == "word" and self._is("=", ahead=2) and self._starts(3):
                return 3
            return 0
        if token.text in _JOINED and not (reading.words_follow and token.text == "and"):
            if following.kind == "word" and self._is("=", ahead=2) and self._starts(3):
                return 3
            together = token.text != "and" or self._alone or not self._words_after_next(1)
            return 1 if self._starts(1) and together else 0
        if token.text in _CONTINUED:
            linked = 2 if following.text in _LINKING else 1
            return linked if self._starts(linked) else 0
        if token.text in (":", "~", "-", MINUS, EN_DASH, "+", "*", "/", "×", "±") and self._starts(1):
            return 0 if token.text in (":", "-", "+") and token.gap != following.gap else 1
        return 0

    def _words_after_next(self, ahead: int) -> bool:
        while self._token(ahead).kind in ("number", "sign") and self._token(ahead).text not in (".", ";", "\n"):
            ahead += 1
            if self._token(ahead).kind == "word":
                return self._token(ahead).text not in _JOINED
        return False

    def _one(self, refused: bool) -> Reading:
        value = self._sum(0)
        number, percent, words = value.number, False, False
        token = self._token()
        if value.composed and token.text.lower() in _MULTIPLIERS.keys() | _PERCENT:
            refused = True
        while token.text.lower() in _MULTIPLIERS:
            number, words = exact.multiply(number, Fraction(_MULTIPLIERS[token.text.lower()])), True
            self._at += 1
            token = self._token()
        if token.text.lower() in _PERCENT or (token.text == "per" and self._is("cent", ahead=1)):
            percent = True
            self._at += 2 if token.text == "per" else 1
        elif token.kind in ("word", "command", "sign"):
            wrong, words = self._unit(token)
            refused = refused or wrong
        operates = self._is(*"+-*×/^(", MINUS) and not words
        unknown = operates and (
            self._maths or (self._token(1).kind == "word" and len(self._token(1).text) == 1)
        )  # 5 + x
        return Reading(None if refused or unknown else number, percent, words)

    def _unit(self, token: _Token) -> tuple[bool, bool]:
        """(refused, words follow) by what stands behind a number."""
        if token.text in ("…", "_", "^", "∞"):
            return True, False
        if token.text == "°":
            self._at += 1
            return False, True
        if token.text == "!":
            return self._maths, False
        if token.text == "/":
            return len(self._token(1).text) == 1 and self._token(1).kind == "word" and self._token(
                1
            ).text not in "shdmgLl", True
        if token.kind == "sign":
            return token.text in ("'", '"', "|") and not token.gap and self._maths, False
        if token.kind == "command" or token.text in _CONTINUED:
            return self._maths or token.text in _CONTINUED or not token.gap, False
        if token.text in _JOINED:
            return self._is("a", "half", "quarter", ahead=1) and self._token(2).text in _PARTS, False
        return self._word_as_unit(token)

    def _word_as_unit(self, token: _Token) -> tuple[bool, bool]:
        text = token.text
        if text in ("x", "X") and self._starts(1):
            return True, False
        if len(text) == 1:
            unit = text in _UNIT_LETTERS
            known = token.gap and unit if self._maths else unit or (token.gap and text not in "xyzXYZn")
            if not known:
                return True, False
        elif not token.gap and (text[0] in "xX" and text[1].isdigit() or text in ("bn", "mn")):
            return True, False
        elif self._maths and not token.gap and len(text) <= 3 and text.rstrip("23") not in _SHORT_UNITS:
            return True, False  # 2ab
        self._at += 1
        size = _SIZES.get(text)
        if self._is("^"):
            self._at += 1
            self._skip_argument()
        following = 1 if self._is("and", ",") else 0
        if size and self._token(following).kind == "number" and _SIZES.get(self._token(following + 1).text) == size:
            self._at += following + 2  # 2 hours 30 minutes
            return True, True
        return False, True


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
