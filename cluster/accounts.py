"""What the driver counts over a run, and the record that each learner step leaves in metrics.jsonl.
Plain numbers; must never decide anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rollcall.cluster.messages import Produced
from rollcall.cluster.workers import StepRequest

RETURN_WINDOW = 100  # episodes over which the training return is averaged


@dataclass(slots=True)
class Counters:
    """What the driver counts; saved with every checkpoint."""

    env_steps: int = 0
    next_ticket_id: int = 0
    incarnations: list[int] = field(default_factory=list)
    recent_returns: list[float] = field(default_factory=list)
    episodes: int = 0
    env_restarts: int = 0
    skipped_steps: int = 0
    lag_sum: float = 0.0
    lag_count: int = 0
    lag_max: int = 0
    train_s: float = 0.0
    restarts: int = 0

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def count(
        self, request: StepRequest, produced: Sequence[Produced], report: Any, *, publish_s: float, step_s: float
    ) -> dict[str, Any]:
        """Takes one learner step in; returns its record."""
        lags = [request.step - item.min_policy_version for item in produced]
        num_steps = sum(item.num_steps for item in produced)
        episodes = [episode for item in produced for episode in item.episodes]
        self.env_steps += num_steps
        self.episodes += len(episodes)
        self.env_restarts += sum(item.env_restarts for item in produced)
        self.skipped_steps += bool(report.skipped)
        self.lag_sum += sum(lags)
        self.lag_count += len(lags)
        self.lag_max = max(self.lag_max, *lags)
        self.train_s += step_s
        returns = self.recent_returns + [episode.episode_return for episode in episodes]
        self.recent_returns = returns[-RETURN_WINDOW:]
        act_s = _act_s(produced)
        return {
            "step": request.step,
            "epoch": request.epoch,
            "policy_version": request.step + 1,
            "wait_batch_s": report.wait_s,
            "update_s": report.update_s,
            "publish_s": publish_s,
            "lag_max": max(lags),
            "lag_mean": sum(lags) / len(lags),
            "return_mean": sum(self.recent_returns) / len(self.recent_returns) if returns else None,
            "env_steps": self.env_steps,
            "steps_per_s": num_steps / step_s,
            "step_s": step_s,
            "act_s": act_s,
            "bound_fraction": min(1.0, max(act_s, report.update_s) / step_s),
            "episodes": self.episodes,
            "learning_rate": report.learning_rate,
            "skipped": bool(report.skipped),
            "env_restarts": self.env_restarts,
            "restarts": self.restarts,
            **report.metrics,
        }


def _act_s(produced: Sequence[Produced]) -> float:
    """Seconds that acting took for this batch, by the actor that worked longest."""
    per_actor: dict[str, float] = {}
    for item in produced:
        busy_s = item.timing.act_s - item.timing.wait_weights_s
        per_actor[item.actor_id] = per_actor.get(item.actor_id, 0.0) + busy_s
    return max(per_actor.values())
