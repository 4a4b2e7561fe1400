"""What gymnasium asks of an env's answers, looked at where they are handed over: what is surely meant is taken, all
else is refused by name."""

from __future__ import annotations

import numbers
import os
import re
import traceback
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import gymnasium as gym
import numpy as np

_FIVE = "return observation, reward, terminated, truncated, info"
# Types that need no second look; to find one in a set costs less than a call.
FLAGS = frozenset({bool, np.bool_})
NUMBERS = FLAGS | {int, float, np.float64, np.float32, np.int64, np.int32}
_OUR_CALLS = (os.path.dirname(os.path.dirname(__file__)) + os.sep, os.path.dirname(gym.__file__) + os.sep)


class ContractError(Exception):
    """An env's answer is not what gymnasium, or its own spaces, ask for. To start it anew would not help: the run ends
    with this text, which is one line and says what to do."""


def read_reset(answer: Any) -> tuple[Any, Mapping[str, Any]]:
    """(observation, info) out of what `reset` returned."""
    if isinstance(answer, (tuple, list)) and len(answer) == 2:
        observation, info = answer
        if info is None or isinstance(info, Mapping):
            return observation, info or {}
    raise ContractError(
        f"reset returned {described(answer)}, and not (observation, info): return both; the info may be {{}}"
    )


def as_number(field: str, value: Any) -> Any:
    """A reward as something that float() takes: a number, or an array or tensor of exactly one."""
    if isinstance(value, (numbers.Real, Decimal)):
        return float(value)
    array = _array_of_one(value)
    if array is None or array.dtype.kind not in "biuf":
        raise ContractError(f"its {field} is {described(value)}, and no number: return a float")
    return float(array.reshape(()))


def as_flag(field: str, value: Any) -> bool:
    """`terminated` or `truncated` as a bool: a bool, 0 or 1, or an array or tensor of exactly one of them."""
    array = _array_of_one(value)
    if array is None or array.dtype.kind not in "biuf" or array.item() not in (0, 1):
        raise ContractError(f"its {field} is {described(value)}, and neither True nor False: return a bool")
    return bool(array.item())


def _array_of_one(value: Any) -> Any:
    """As a numpy array of one element; None for what is none, a list or text among it."""
    if not isinstance(value, (numbers.Number, np.ndarray, np.generic)) and not hasattr(value, "__array__"):
        return None
    try:
        array = np.asarray(value)
    except Exception:
        return None
    return array if array.size == 1 else None


def described(value: Any) -> str:
    """In a few words, what something is: its type, and its value or its shape."""
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    if isinstance(shape, tuple) and hasattr(value, "dtype") and not isinstance(value, np.generic):
        return f"{kind} {value.dtype}{list(shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {kind} of {len(value)}"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind})"


def misunderstanding(error: Exception) -> str | None:
    """What an exception means that comes of calling an env in gymnasium's way, where the env has another; None for one
    that the env's own code raised."""
    if isinstance(error, ContractError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not frames[-1].filename.startswith(_OUR_CALLS):
        return None
    text = str(error)
    if isinstance(error, (ValueError, TypeError)) and "unpack" in text:
        if "expected 5, got 4" in text:
            return f"step returned four values, as gym did before 0.26 (done is two now): {_FIVE}"
        if "expected 5" in text or "non-iterable" in text:
            return f"step did not return five values ({text}): {_FIVE}"
    keyword = re.search(r"reset\(\) got an unexpected keyword argument '(seed|options)'", text)
    if isinstance(error, TypeError) and keyword:
        return (
            f"reset takes no {keyword[1]}: write def reset(self, *, seed=None, options=None), and in it "
            "super().reset(seed=seed)"
        )
    return None
