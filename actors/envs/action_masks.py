"""Action masks in the forms that envs give them, as one: bool, True where an action is allowed, the choices of a
MultiDiscrete space side by side. What could be read in two ways is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.actors.envs.contract import ContractError, described
from rollcall.cluster.messages.arrays import Array

_log = logging.getLogger(__name__)

MASK_KEYS = ("action_mask", "action_masks")  # in a Dict observation or in the info
MASK_METHOD = "action_masks"  # of the env: sb3-contrib's way
# Names under which other libraries keep what an env allows: a mask, its opposite, or a list.
_ALIKE = (
    *("valid_action_mask", "valid_actions_mask", "invalid_action_mask", "actions_mask", "legal_action_mask"),
    *("legal_actions", "legal_moves", "valid_actions", "valid_moves", "available_actions", "avail_actions"),
)
_told: set[tuple[str, str]] = set()


def mask_key(space: gym.Space[Any]) -> str | None:
    """Under which key of a Dict observation space its mask is."""
    if not isinstance(space, gym.spaces.Dict):
        return None
    return next((key for key in MASK_KEYS if key in space.spaces), None)


def tell_unread(env: str, observed: gym.Space[Any], info: Mapping[str, Any]) -> None:
    """Logs, once for each env, that something in the observation or the info says what is allowed and is not read."""
    names = [*(observed.spaces if isinstance(observed, gym.spaces.Dict) else ()), *info]
    unread = next((name for name in names if name in _ALIKE), None)
    if unread is not None and not any(key in names for key in MASK_KEYS) and (env, unread) not in _told:
        _told.add((env, unread))
        _log.warning("%s: %r is not read as a mask: give an action_mask, True where an action is allowed", env, unread)


def num_choices(space: gym.Space[Any]) -> tuple[int, ...]:
    """How many actions each choice of an action space has; empty where actions cannot be masked."""
    if isinstance(space, gym.spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.reshape(-1))
    return ()


def mask_method(env: gym.Env[Any, Any], action_space: gym.Space[Any]) -> Callable[[], Any] | None:
    """The env's method `action_masks`, or a wrapper's, where it has one and its actions can be masked."""
    if not num_choices(action_space) or not env.has_wrapper_attr(MASK_METHOD):
        return None
    method = env.get_wrapper_attr(MASK_METHOD)
    return method if callable(method) else None


def read_mask(value: Any, choices: tuple[int, ...], lead: tuple[int, ...] = ()) -> Array:
    """bool [*lead, sum of choices].

    Raises:
      ContractError: unless it is one bool (or 0 or 1) per action: side by side, one array per choice, or, for a
        MultiDiscrete space, one row per choice, the shorter ones padded.
    """
    if not choices:
        raise ContractError("there is an action_mask, and continuous actions cannot be masked: leave it out")
    size, num = sum(choices), len(choices)
    if isinstance(value, (tuple, list)) and num > 1 and len(value) == num:
        parts = [_as_bools(part, choices, value) for part in value]
        if [part.shape for part in parts] == [(*lead, n) for n in choices]:
            return np.concatenate(parts, axis=-1)
    mask = _as_bools(value, choices, value)
    if mask.shape == (*lead, size):
        return mask
    if num == 1 and mask.shape == (*lead, 1, size):
        return mask.reshape(*lead, size)
    if num > 1 and mask.shape == (*lead, num, max(choices)):
        return np.concatenate([mask[..., k, :n] for k, n in enumerate(choices)], axis=-1)
    raise _refusal(value, choices)


def _as_bools(part: Any, choices: tuple[int, ...], value: Any) -> Array:
    try:
        array = np.asarray(part)
    except Exception:
        raise _refusal(value, choices) from None
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind not in "iuf":
        raise _refusal(value, choices)
    mask = array.astype(bool)
    if not np.array_equal(mask, array):  # indices, logits, probabilities
        raise _refusal(value, choices)
    return mask


def _refusal(value: Any, choices: tuple[int, ...]) -> ContractError:
    shape = f"{choices[0]} bools" if len(choices) == 1 else f"{sum(choices)} bools ({' + '.join(map(str, choices))})"
    try:
        given = np.array2string(np.asarray(value), threshold=8, separator=", ").replace("\n", "")
    except Exception:
        given = described(value)
    return ContractError(
        f"its action_mask is {given}: give {shape}, True where an action is allowed (from a list of indices: "
        "np.isin(range(n), indices); from logits of 0 and -inf: logits == 0)"
    )
