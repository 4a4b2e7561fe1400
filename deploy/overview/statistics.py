"""A mean over few seeds, and how sure it is: Student's t, since three or five seeds are too few for anything that takes
the spread for known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
# The 97.5 % quantiles of Student's t by degrees of freedom; between two rows that of the fewer, which is the wider.
_T = {
    **{1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228},
    **{11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093, 20: 2.086},
    **{25: 2.060, 30: 2.042, 40: 2.021, 60: 2.000, 120: 1.980},
}


@dataclass(frozen=True)
class Mean:
    """Of n values, with the 95 % interval of the mean; none of a single value."""

    mean: float
    low: float | None
    high: float | None
    n: int


def t_quantile(degrees: int) -> float:
    """97.5 %, so that 95 % lie between its negative and itself.

    Raises:
      ValueError: degrees of freedom below 1.
    """
    if degrees < 1:
        raise ValueError(f"degrees is {degrees}: two values have one degree of freedom")
    return _T[max(known for known in _T if known <= degrees)]


def mean_of(values: Sequence[float]) -> Mean | None:
    """The mean and its 95 % t interval, mean -+ t * s / sqrt(n), s with n - 1 below it. None of no value."""
    n = len(values)
    if not n:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return Mean(mean, mean - half, mean + half, n)
