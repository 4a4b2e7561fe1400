"""Scores steps in an env by a function that nobody trusts: a reward that a language model has written. It runs in the
sandbox, many steps to a message; what comes back is looked at before it counts. Must never run a line of it here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rollcall.reward_service.protocol import ItemErrorKind, ScoreItem, Segment
from rollcall.reward_service.sandbox.run import Containment, Ended, SandboxBroken, Served, probe
from rollcall.reward_service.scorer import Failure, Outcome, Score, Taken
from rollcall.reward_service.scorers.code_reward_config import CodeRewardConfig
from rollcall.reward_service.scorers.text_scorers import version_of

MAX_COMPONENTS, MAX_MESSAGE = 20, 400  # characters
_SPARE_CPU_S = 0.1  # for reading and writing a request
_NUMBERS_AT_ONCE = 400_000  # in one request to the sandbox


class _NoScore(Exception):
    """Why there is none."""

    def __init__(self, kind: ItemErrorKind, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, plain_line(message))


class CodeReward:
    """Safe to be closed while it works. Each segment's scores follow from that segment alone."""

    takes: frozenset[Taken] = frozenset({"segment"})
    cacheable = False  # no trajectory comes twice

    def __init__(self, config: CodeRewardConfig, containment: Containment) -> None:
        self.version = version_of(config)
        self.containment = containment
        self._config = config
        self._served: Served | None = None
        self._cpu_s = 0.0  # of the sandbox that stands
        # A sandbox ends with the thread that made it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="code-reward")

    def cost(self, item: ScoreItem) -> int:
        return item.segment.num_steps if item.segment is not None else 1

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return self._thread.submit(self._score, items).result()

    def close(self) -> None:
        self._thread.submit(self._end).result()
        self._thread.shutdown()

    def _score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for part in _parts(items):
            segments = [item.segment for item in part]
            try:
                if not self.containment.usable:
                    raise _NoScore("unavailable", f"no code is run here: {self.containment.problem}")
                whole = [s for s in segments if s is not None and s.last_observation is not None]
                if len(whole) < len(segments):
                    raise _NoScore("unsupported", "this scorer takes segments with their last_observation")
                results = self._asked(whole)
                outcomes += [_outcome(said, segment) for said, segment in zip(results, whole, strict=True)]
            except _NoScore as error:
                outcomes += [error.failure] * len(part)
        return outcomes

    def _asked(self, segments: Sequence[Segment]) -> list[Any]:
        """What the sandbox says of each."""
        steps = sum(segment.num_steps for segment in segments)
        calls_s = self._config.call_s * steps
        timeout_s = self._config.limits.wall_s + calls_s
        try:
            if self._served is None:
                self._served = Served(
                    self.containment, self._config.limits, "reward_roles.reward", {"code": self._config.code}
                )
                self._cpu_s = 0.0
            answer = self._served.ask({"segments": [_plain(segment) for segment in segments]}, timeout_s)
        except ValueError as error:  # nothing was sent
            raise _NoScore("too_long", str(error)) from None
        except TimeoutError:
            self._end()
            raise _NoScore("timeout", f"{steps} calls took longer than {timeout_s:.3g} s") from None
        except (Ended, SandboxBroken) as error:
            self._end()
            raise _NoScore("scorer_failed", str(error)) from None
        results, cpu_s = answer.get("results"), answer.get("cpu_s")
        if not isinstance(results, list) or len(results) != len(segments) or not isinstance(cpu_s, (int, float)):
            self._end()
            raise _NoScore("scorer_failed", "its process does not answer as it should")
        self._cpu_s += cpu_s
        if self._cpu_s > self._config.limits.cpu_s / 2:  # the limit is of one process: another one next time
            self._end()
        broken = any(isinstance(said, dict) and "error" in said for said in results)  # which says more
        if cpu_s > calls_s + _SPARE_CPU_S and not broken:
            each = f"a call took {1e3 * cpu_s / steps:.3g} ms, and {1e3 * self._config.call_s:.3g} ms are allowed"
            raise _NoScore("timeout", f"{each} (call_s)")
        return results

    def _end(self) -> None:
        served, self._served = self._served, None
        if served is not None:
            served.close()


def build_code_reward(config: CodeRewardConfig) -> CodeReward:
    """Probes this machine."""
    return CodeReward(config, probe(config.limits, unsafe=config.sandbox == "unsafe"))


def plain_line(text: str) -> str:
    """Text that was made by code that nobody trusts, as one short line of printable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:MAX_MESSAGE]).split())


def _parts(items: Sequence[ScoreItem]) -> list[list[ScoreItem]]:
    """In requests of a bounded size; a segment is never cut."""
    parts: list[list[ScoreItem]] = [[]]
    numbers = 0
    for item in items:
        size = 0 if item.segment is None else math.prod(item.segment.observations.shape)
        if parts[-1] and numbers + size > _NUMBERS_AT_ONCE:
            parts.append([])
            numbers = 0
        parts[-1].append(item)
        numbers += size
    return [part for part in parts if part]


def _plain(segment: Segment) -> dict[str, Any]:
    assert segment.last_observation is not None
    return {
        "observations": segment.observations.array().tolist(),
        "actions": segment.actions.array().tolist(),
        "last_observation": segment.last_observation.array()[0].tolist(),
        "terminated": bool(segment.terminated),
    }


def _outcome(said: Any, segment: Segment) -> Outcome:
    """A score, if that is what the sandbox said: it is asked for finite numbers there, and held to it here."""
    error = said.get("error") if isinstance(said, dict) else "it gave no object"
    if error is not None:
        return Failure("scorer_failed", plain_line(str(error)))
    rewards, components = said.get("rewards"), said.get("components")
    if not isinstance(rewards, list) or not isinstance(components, dict):
        return Failure("scorer_failed", "it gave no rewards and components")
    if len(rewards) != segment.num_steps or not 1 <= len(components) <= MAX_COMPONENTS:
        return Failure("scorer_failed", f"it gave {len(rewards)} rewards and {len(components)} components")
    values = [*rewards, *components.values()]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        return Failure("non_finite", "it gave what is no finite number")
    steps = tuple(float(value) for value in rewards)
    named = {plain_line(str(name))[:40]: float(value) for name, value in components.items()}
    return Score(math.fsum(steps), named, steps)
