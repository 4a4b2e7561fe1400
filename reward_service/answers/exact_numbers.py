"""Exact rational arithmetic that stays small: whatever would have more than MAX_DIGITS digits is no number (None), and
so is all that is made of it."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from math import factorial as _factorial
from math import log10

MAX_DIGITS = 400
_LARGEST = 10**MAX_DIGITS
_ENDLESS_DIGITS = 28  # to which a fraction without an end is written as a decimal

Number = Fraction | None


def bounded(number: Number) -> Number:
    if number is None or abs(number.numerator) >= _LARGEST or number.denominator >= _LARGEST:
        return None
    return number


def add(a: Number, b: Number) -> Number:
    return None if a is None or b is None else bounded(a + b)


def negate(a: Number) -> Number:
    return None if a is None else -a


def multiply(a: Number, b: Number) -> Number:
    return None if a is None or b is None else bounded(a * b)


def divide(a: Number, b: Number) -> Number:
    return None if a is None or b is None or b == 0 else bounded(a / b)


def power(base: Number, exponent: Number) -> Number:
    """Exact, or none: 4^(1/2) is 2, 2^(1/2) is not known."""
    if base is None or exponent is None or abs(exponent.numerator) > 10**4 or exponent.denominator > 100:
        return None
    if base == 0:
        return Fraction(0) if exponent > 0 else None
    digits = max(log10(abs(base.numerator)), log10(base.denominator)) * abs(exponent.numerator)
    if digits > MAX_DIGITS * exponent.denominator:
        return None
    return root(bounded(base**exponent.numerator), exponent.denominator)


def root(number: Number, degree: int) -> Number:
    """The real root of a non-negative number, or of any for an odd degree, where it is rational; else none."""
    if number is None or degree < 1 or degree > 100 or (number < 0 and degree % 2 == 0):
        return None
    top, bottom = _whole_root(abs(number.numerator), degree), _whole_root(number.denominator, degree)
    if top is None or bottom is None:
        return None
    return Fraction(-top if number < 0 else top, bottom)


def factorial(number: Number) -> Number:
    if number is None or number.denominator != 1 or not 0 <= number <= 200:
        return None
    return bounded(Fraction(_factorial(number.numerator)))


def ends(number: Fraction) -> bool:
    """Whether its decimal has an end."""
    return pow(10, number.denominator.bit_length(), number.denominator) == 0


def as_decimal(number: Fraction) -> Decimal:
    """Exact where the decimal has an end; else to 28 digits."""
    with localcontext() as context:
        context.prec = 5 * MAX_DIGITS if ends(number) else _ENDLESS_DIGITS
        return Decimal(number.numerator) / Decimal(number.denominator)


def _whole_root(number: int, degree: int) -> int | None:
    """By bisection: at most 1,400 bits."""
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low <= high:
        middle = (low + high) // 2
        found = middle**degree
        if found == number:
            return middle
        low, high = (middle + 1, high) if found < number else (low, middle - 1)
    return None
