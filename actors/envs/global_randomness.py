"""Python's and numpy's global random generators, one state for each env: what an env draws from `random` and
`numpy.random` depends on its own seed alone, whichever envs, or whoever else, share its process."""

from __future__ import annotations

import ctypes
import logging
import random
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

_log = logging.getLogger(__name__)

Env = gym.Env[Any, Any]
VectorEnvs = VectorEnv[Any, Any, Any]

_DRAWS_FROM_ITS_OWN = "gymnasium.envs.classic_control."
_NUM_WORDS = 625  # of a Mersenne twister in `random`: how many of its 624 words are used up, and the words


def _words_of(generator: random.Random) -> bytes:
    *words, used = generator.getstate()[1]
    return np.array([used, *words], np.uint32).tobytes()


def _words_in_place(generator: random.Random) -> memoryview | None:
    """The generator's state where CPython keeps it, behind the object's head. None where this Python keeps it
    otherwise. (getstate and setstate make 625 Python integers of it, at 20 us: too slow for every step of an env.)"""
    first = object.__basicsize__
    is_there = getattr(random.Random.__base__, "__basicsize__", 0) >= first + 4 * _NUM_WORDS
    if sys.implementation.name != "cpython" or not is_there:
        return None
    memory = (ctypes.c_uint32 * _NUM_WORDS).from_address(id(generator) + first)
    words = memoryview(memory).cast("B")
    return words if bytes(words) == _words_of(generator) else None


_shared: Any = random.random.__self__  # type: ignore[attr-defined]
_numpy: Any = np.random  # its stubs leave out the two functions that are used here
_shared_words = _words_in_place(_shared)


def _read() -> bytes:
    return _words_of(_shared) if _shared_words is None else bytes(_shared_words)


def _write(words: bytes, gauss_next: float | None) -> None:
    if _shared_words is None:
        used, *rest = np.frombuffer(words, np.uint32).tolist()
        _shared.setstate((3, (*rest, used), gauss_next))
    else:
        _shared_words[:] = words
        _shared.gauss_next = gauss_next


class GlobalRandomness:
    """`random` and `numpy.random` as one env has them. Inside a `with` the process's global generators are its own, to
    draw from or to seed; outside they are as they were."""

    def __init__(self, seed: int) -> None:
        self.seed(seed)
        self._outside: tuple[bytes, float | None, Any] | None = None

    def seed(self, seed: int) -> None:
        own = random.Random(seed)
        self._words = _words_of(own)
        self._gauss_next: float | None = None
        self._numpy = np.random.Generator(np.random.MT19937(seed))

    def __enter__(self) -> None:
        self._outside = _read(), _shared.gauss_next, _numpy.get_bit_generator()
        _write(self._words, self._gauss_next)
        _numpy.set_bit_generator(self._numpy.bit_generator)

    def __exit__(self, *exception: object) -> None:
        assert self._outside is not None
        words, gauss_next, bits = self._outside
        self._outside = None
        self._words, self._gauss_next = _read(), _shared.gauss_next
        _write(words, gauss_next)
        _numpy.set_bit_generator(bits)


class OwnRandomness(gym.Wrapper[Any, Any, Any, Any]):
    """An env that has the global generators to itself. A reset with a seed seeds them too."""

    def __init__(self, make: Callable[[], Env], seed: int) -> None:
        """`seed`: of what the env draws while it is made."""
        self._randomness = GlobalRandomness(seed)
        with self._randomness:
            env = make()
        super().__init__(env)

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        """With what was given and nothing else: older envs take no options, or no seed."""
        if given.get("seed") is not None:
            self._randomness.seed(given["seed"])
        with self._randomness:
            return self.env.reset(**given)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        with self._randomness:
            return self.env.step(action)

    def close(self) -> None:
        """Nobody needs it any more: what it raises then is only told."""
        try:
            self.env.close()
        except Exception as error:
            _log.warning("an env did not close: %s: %s", type(error).__name__, error)


def with_own_randomness(make: Callable[[], VectorEnvs], seed: int) -> VectorEnvs:
    """What `make` makes, with the global generators to itself. Gymnasium's own numpy-native envs draw from a generator
    of their own alone, and are left bare: to lend them the global ones takes a tenth of CartPole's step."""
    envs = OwnVectorRandomness(make, seed)
    return envs.env if type(envs.env).__module__.startswith(_DRAWS_FROM_ITS_OWN) else envs


class OwnVectorRandomness(VectorWrapper):
    """The same for envs that are one object, which share one state."""

    def __init__(self, make: Callable[[], VectorEnvs], seed: int) -> None:
        self._randomness = GlobalRandomness(seed)
        with self._randomness:
            env = make()
        super().__init__(env)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._randomness.seed(int(np.ravel(seed)[0]))
        with self._randomness:
            return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        with self._randomness:
            return self.env.step(actions)
