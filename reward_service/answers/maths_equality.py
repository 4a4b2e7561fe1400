"""When two formulas are equal as numbers: exactly where both are exact, else to so many digits of their size."""

from __future__ import annotations

import math
from typing import Any

import sympy  # type: ignore[import-untyped]

_DIGITS = 30  # of the evaluation; numbers without a decimal point that agree to five less are equal
_MAX_DIGITS = 10_000
_PERCENT = sympy.UnevaluatedExpr(sympy.Rational(1, 100))


def agree(a: object, b: object, digits: int, _precision: int) -> bool:
    """In place of math_verify.grader.sympy_numeric_eq, which rounds to decimals: to it 3.3e-34 and 6.6e-34 are both 0.

    Decimals agree when they are apart by at most half a unit of the last of `digits` decimals, or, below 1, of the last
    of `digits` significant digits. 50% is 50 and 1/2.
    """
    if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
        return a.shape == b.shape and all(agree(x, y, digits, 0) for x, y in zip(a.flat(), b.flat(), strict=True))
    if not isinstance(a, sympy.Expr) or not isinstance(b, sympy.Expr):
        return False
    if _without_percent(a) == b or a == _without_percent(b):
        return True
    if a.is_number and b.is_number:
        return _numbers_agree(a, b, digits)
    return bool((a - b).atoms(sympy.Float)) and _coefficients_agree(a, b, digits)


def is_too_large(expression: object) -> bool:
    """Whether a power in it has more than 10^4 digits, or cannot be told to have fewer."""
    if not isinstance(expression, sympy.Basic):
        return False
    return any(
        isinstance(part, sympy.Pow) and _digits_of(part, 0) > _MAX_DIGITS
        for part in sympy.preorder_traversal(expression)
    )


def _digits_of(number: Any, depth: int) -> float:
    """Roughly the decimal digits of a number's largest part, without evaluating it; 0 of what is none."""
    if depth > 50:
        return math.inf
    if isinstance(number, sympy.Pow):
        base, exponent = (_digits_of(part, depth + 1) for part in number.args)
        return max(base, 1.0) * 10 ** min(exponent, 300.0) if number.args[1].is_number else exponent
    if isinstance(number, sympy.Rational):
        return float(max(number.p.bit_length(), number.q.bit_length())) / 3.3
    return sum((_digits_of(part, depth + 1) for part in number.args), 0.0)


def tolerance(size: object, digits: int) -> Any:
    """Of decimals about as large as `size`, above 0."""
    zeros = max(0, -1 - sympy.floor(sympy.log(size, 10).evalf(15)))  # between the point and the first digit
    return sympy.Rational(1, 2 * 10 ** (digits + zeros))


def _without_percent(a: Any) -> Any:
    """The 50 of 50%."""
    percent = isinstance(a, sympy.Mul) and len(a.args) == 2 and a.args[1] == _PERCENT
    return a.args[0] if percent else a


def _numbers_agree(a: Any, b: Any, digits: int) -> bool:
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    x, y = a.evalf(_DIGITS), b.evalf(_DIGITS)
    apart, size = abs(x - y), abs(x)
    if not (apart.is_comparable and size.is_comparable):
        return False
    decimal = a.atoms(sympy.Float) or b.atoms(sympy.Float)
    if size == 0:
        return bool(apart == 0)
    allowed = tolerance(size, digits) if decimal else size * sympy.Rational(1, 10 ** (_DIGITS - 5))
    return bool(apart <= allowed * (1 + sympy.Rational(1, 10**9)))


def _coefficients_agree(a: Any, b: Any, digits: int) -> bool:
    """Of sums that have decimals in them: 0.5 x + 1 and x/2 + 1."""
    of_a, of_b = (sympy.expand(x.doit()).as_coefficients_dict() for x in (a, b))
    return of_a.keys() == of_b.keys() and all(_numbers_agree(of_a[term], of_b[term], digits) for term in of_a)
