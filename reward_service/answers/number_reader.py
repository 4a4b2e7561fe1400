"""The numbers that stand in a text, as a person reads them: 1 1/2, 6.02 x 10^23, 2 * 3 = 6, 5 million. What may be read
in two ways, or has no exact value, is found and refused."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from rollcall.reward_service.answers import exact_numbers as exact
from rollcall.reward_service.answers.exact_numbers import Number
from rollcall.reward_service.answers.number_grammar import CLOSING, END, Grammar, Token, tokens_of
from rollcall.reward_service.answers.number_words import (
    CONTINUED,
    JOINED,
    LINKING,
    MULTIPLIERS,
    PARTS,
    PERCENT,
    SAYING,
    SHORT_UNITS,
    SIZES,
    UNIT_LETTERS,
)
from rollcall.reward_service.answers.plain_notation import EN_DASH, MINUS, plain

MAX_CHARACTERS = 4000  # of one text; a longer one is cut, or refused


@dataclass(frozen=True, slots=True)
class Reading:
    """One number, or a chain of equal ones (2 * 3 = 6) of which the last counts."""

    value: Number  # None: refused
    percent: bool = False
    words_follow: bool = False


def read_numbers(text: str, *, maths: bool = False, alone: bool = False, item: bool = False) -> list[Reading]:
    r"""All numbers in a text, in its order, chains and lists as one each.

    Args:
      maths: the text is a formula (a box), and an answer as a whole: 5! is 120, 2x is no number, 1 234 is one.
      alone: the text was marked as the answer: 1 234 is one number.
      item: the text is a line among others, so that "- 5" may be an item of a list.
    """
    alone = alone or maths
    grammar = Grammar(tokens_of(plain(text[-MAX_CHARACTERS:])), maths=maths, alone=alone)
    return _Reader(grammar, maths=maths, alone=alone, item=item).readings()


class _Reader:
    def __init__(self, grammar: Grammar, *, maths: bool, alone: bool, item: bool) -> None:
        self._grammar = grammar
        self._maths = maths
        self._alone = alone
        self._item = item

    def readings(self) -> list[Reading]:
        found: list[Reading] = []
        while not self._grammar.ended:
            if not self._grammar.starts() or self._is_no_number():
                self._pass_over(found)
                continue
            refused = self._refused_by_what_precedes()
            begin = self._grammar.at
            reading = self._chain(refused)
            assert self._grammar.at > begin, "the reader stands still"
            found.append(reading)
        return found

    def _is_no_number(self) -> bool:
        """A subscript's, or a bracket that begins something else than a number: (5 apples)."""
        if self._grammar.token(-1).text.endswith("_") and self._grammar.at > 0:
            return True
        if self._grammar.token().text not in CLOSING or self._maths:
            return False
        return not self._closes_after_numbers()

    def _closes_after_numbers(self) -> bool:
        depth = 0
        for ahead in range(60):
            token = self._grammar.token(ahead)
            depth += (token.text in CLOSING) - (token.text in CLOSING.values())
            if depth == 0:
                return True
            if token.kind in ("word", "line", "end") or token.text in "=:":
                return False
        return False

    def _pass_over(self, found: list[Reading]) -> None:
        token = self._grammar.token()
        subscript = token.text.endswith("_") and self._grammar.token(1).kind != "end"
        refused = token.text in ("^", "\\begin", "\\overline", "\\overbrace")  # x^2, 0.\overline{3}
        self._grammar.at += 1
        if subscript or refused:
            self._grammar.skip_argument()
        if refused:
            found.append(Reading(None))

    def _refused_by_what_precedes(self) -> bool:
        """x < 5, x + 5, x/2; and a line's "- 5", which may be an item of a list."""
        sign, before = self._grammar.token(), self._grammar.token(-1) if self._grammar.at else END
        if before.text in ("<", ">", "≤", "≥", "≠", "^") or (before.text == "|" and not sign.gap):
            return True
        if before.text == "\u2014":  # a dash between words, or a minus
            return not before.gap and not sign.gap
        if self._maths and (before.kind == "command" or before.is_letter):
            return True
        if before.text in ("*", "/", "×", "+") and self._grammar.at > 1:
            operand = self._grammar.token(-2)
            return operand.kind in ("word", "command") or operand.text in CLOSING.values()
        if sign.text not in ("-", "+", MINUS, EN_DASH):
            return False
        spaced = self._grammar.token(1).gap
        if before.kind == "word":
            if self._maths or not sign.gap:
                return True
            return spaced and before.text.lower() not in SAYING
        if before.text in CLOSING.values():
            return True
        return self._grammar.at == 0 and spaced and self._item

    def _chain(self, refused: bool) -> Reading:
        reading = self._one(refused)
        while True:
            if self._grammar.is_("=", "≈") and (skipped := self._to_the_next_side()):
                self._grammar.at += skipped
                reading = self._one(False)
            elif joined := self._joined(reading):
                self._grammar.at += joined
                reading = self._one(refused=True)
            else:
                return reading

    def _to_the_next_side(self) -> int:
        """Tokens from an equals sign to the number behind it; 0 where there is none at once."""
        if self._grammar.starts(1):
            return 1
        return 2 if self._grammar.token(1).text in ("=", "≈") and self._grammar.starts(2) else 0

    def _joined(self, reading: Reading) -> int:
        """Tokens to the next number of a list, a range or a sum with this one; 0 where it stands for itself."""
        token, following = self._grammar.token(), self._grammar.token(1)
        listed = token.text in (",", ";")
        if listed and following.text in ("and", "or", "&"):
            return 2 if self._grammar.starts(2) else 0
        if listed or (token.text in JOINED and not (reading.words_follow and token.text == "and")):
            if following.kind == "word" and self._grammar.is_("=", ahead=2) and self._grammar.starts(3):
                return 3
            surely = self._alone or not (listed or token.text == "and")
            return 1 if self._grammar.starts(1) and (surely or not self._words_after_next(1)) else 0
        if token.text in CONTINUED:
            linked = 2 if following.text in LINKING else 1
            return linked if self._grammar.starts(linked) else 0
        if token.text in (":", "~", "-", MINUS, EN_DASH, "+", "*", "/", "×", "±") and self._grammar.starts(1):
            return 0 if token.text in (":", "-", "+") and token.gap != following.gap else 1
        return 0

    def _words_after_next(self, ahead: int) -> bool:
        token = self._grammar.token(ahead)
        while token.kind in ("number", "sign") and token.text not in (".", ";"):
            ahead += 1
            token = self._grammar.token(ahead)
        return token.kind == "word" and token.text not in JOINED

    def _one(self, refused: bool) -> Reading:
        value = self._grammar.sum()
        number, percent, words = value.number, False, False
        token = self._grammar.token()
        if value.composed and token.text.lower() in MULTIPLIERS.keys() | PERCENT:
            refused = True
        while token.text.lower() in MULTIPLIERS:
            number, words = exact.multiply(number, Fraction(MULTIPLIERS[token.text.lower()])), True
            self._grammar.at += 1
            token = self._grammar.token()
        if token.text.lower() in PERCENT or (token.text == "per" and self._grammar.is_("cent", ahead=1)):
            percent = True
            self._grammar.at += 2 if token.text == "per" else 1
        elif token.kind in ("word", "command", "sign"):
            wrong, words = self._unit(token)
            refused = refused or wrong
        operates = self._grammar.is_(*"+-*×/^(", MINUS) and not words
        unknown = operates and (self._maths or self._grammar.token(1).is_letter)  # 5 + x
        return Reading(None if refused or unknown else number, percent, words)

    def _unit(self, token: Token) -> tuple[bool, bool]:
        """(refused, words follow) by what stands behind a number."""
        if token.text in ("…", "_", "^", "∞"):
            return True, False
        if token.text == "°":
            self._grammar.at += 1
            return False, True
        if token.text == "!":
            return self._maths, False
        if token.text == "/":
            divisor = self._grammar.token(1)
            return divisor.is_letter and divisor.text not in "shdmgLl", True
        if token.kind == "sign":
            return token.text in ("'", '"', "|") and not token.gap and self._maths, False
        if token.kind == "command" or token.text in CONTINUED:
            return self._maths or token.text in CONTINUED or not token.gap, False
        if token.text in JOINED:
            return self._grammar.is_("a", "half", "quarter", ahead=1) and self._grammar.token(2).text in PARTS, False
        return self._word_as_unit(token)

    def _word_as_unit(self, token: Token) -> tuple[bool, bool]:
        text = token.text
        if text in ("x", "X") and self._grammar.starts(1):
            return True, False
        if len(text) == 1:
            unit = text in UNIT_LETTERS
            known = token.gap and unit if self._maths else unit or (token.gap and text not in "xyzXYZn")
            if not known:
                return True, False
        elif not token.gap and ((text[0] in "xX" and text[1].isdigit()) or text in ("bn", "mn")):
            return True, False
        elif self._maths and not token.gap and len(text) <= 3 and text.rstrip("23") not in SHORT_UNITS:
            return True, False  # 2ab
        self._grammar.at += 1
        size = SIZES.get(text)
        if self._grammar.is_("^"):
            self._grammar.at += 1
            self._grammar.skip_argument()
        following = 1 if self._grammar.is_("and", ",") else 0
        count, name = self._grammar.token(following), self._grammar.token(following + 1)
        another = size is not None and count.kind == "number" and SIZES.get(name.text) == size
        if another:
            self._grammar.at += following + 2  # 2 hours 30 minutes
        return another, True
