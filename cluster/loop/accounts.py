"""What the driver counts over a run, and the record that each learner step leaves in metrics.jsonl.
Plain numbers; must never decide anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollcall.cluster.loop import gamed_rewards
from rollcall.cluster.messages.attempt import EngineLoad, Produced
from rollcall.cluster.messages.reports import StepOrder, StepReport

RETURN_WINDOW = 100  # episodes over which training returns and lengths are averaged
LOGGED_SAMPLES = 4  # completions in each step's record, for people


@dataclass(slots=True)
class Counters:
    """What the driver counts; saved with every checkpoint."""

    env_steps: int = 0
    tokens: int = 0  # sampled by the policy, and learnt from
    next_ticket_id: int = 0
    recent_returns: list[float] = field(default_factory=list)
    recent_lengths: list[int] = field(default_factory=list)
    episodes: int = 0
    env_restarts: int = 0
    degenerate: int = 0
    skipped_steps: int = 0
    lag_sum: float = 0.0  # over tickets in control, over tokens in language
    lag_count: int = 0
    lag_max: int = 0
    train_s: float = 0.0
    restarts: int = 0
    followed: dict[str, float] = field(default_factory=dict)  # gamed_rewards.py's: the first steps, and the best

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def count(
        self, order: StepOrder, produced: Sequence[Produced], report: StepReport, *, publish_s: float, step_s: float
    ) -> dict[str, Any]:
        """Takes one learner step in; returns its record."""
        lags = _Lags(order.step, produced)
        self.skipped_steps += report.skipped
        self.lag_sum += lags.sum
        self.lag_count += lags.count
        self.lag_max = max(self.lag_max, lags.max)
        self.train_s += step_s
        act_s = _act_s(produced)
        experience = self._samples if produced[0].samples else self._episodes
        record = {
            "step": order.step,
            "epoch": order.epoch,
            "policy_version": order.step + 1,
            "wait_batch_s": report.wait_s,
            "update_s": report.update_s,
            "publish_s": publish_s,
            "lag_max": lags.max,
            "lag_mean": lags.sum / lags.count,
            **experience(produced, step_s),
            **_scoring(produced),
            "step_s": step_s,
            "act_s": act_s,
            "bound_fraction": min(1.0, max(act_s, report.update_s) / step_s),
            "learning_rate": report.learning_rate,
            "skipped": report.skipped,
            "restarts": self.restarts,
            **report.metrics,
        }
        return record | (gamed_rewards.followed(self.followed, record) if produced[0].samples else {})

    def _episodes(self, produced: Sequence[Produced], step_s: float) -> dict[str, Any]:
        """Of control experience."""
        num_steps = sum(item.num_steps for item in produced)
        episodes = [episode for item in produced for episode in item.episodes]
        self.env_steps += num_steps
        self.episodes += len(episodes)
        self.env_restarts += sum(item.env_restarts for item in produced)
        returns = self.recent_returns + [episode.episode_return for episode in episodes]
        lengths = self.recent_lengths + [episode.length for episode in episodes]
        self.recent_returns, self.recent_lengths = returns[-RETURN_WINDOW:], lengths[-RETURN_WINDOW:]
        return {
            "return_mean": _mean(self.recent_returns) if returns else None,
            "episode_length_mean": _mean(self.recent_lengths) if lengths else None,
            "env_steps": self.env_steps,
            "steps_per_s": num_steps / step_s,
            "episodes": self.episodes,
            "env_restarts": self.env_restarts,
        }

    def _samples(self, produced: Sequence[Produced], step_s: float) -> dict[str, Any]:
        """Of language experience."""
        num_tokens = sum(item.num_tokens for item in produced)
        samples = [sample for item in produced for sample in item.samples]
        self.tokens += num_tokens
        names = sorted({name for sample in samples for name in sample.reward_components})
        components = {
            f"reward_{name}": _mean(sample.reward_components.get(name, 0.0) for sample in samples) for name in names
        }
        logged = [
            {"prompt": item.samples[0].prompt, "text": item.samples[0].text, "reward": item.samples[0].reward}
            for item in produced[:LOGGED_SAMPLES]
        ]
        return {
            "reward_mean": _mean(sample.reward for sample in samples),
            "exact_match": _mean(sample.correct for sample in samples),
            "unparsed_fraction": _mean(not sample.parsed for sample in samples),
            "truncated_fraction": _mean(sample.truncated for sample in samples),
            "length_mean": _mean(sample.num_tokens for sample in samples),
            "length_max": max(sample.num_tokens for sample in samples),
            "degenerate_fraction": _mean(item.is_degenerate for item in produced),
            "degenerate_dropped": self.degenerate,
            "apply_s": sum(item.timing.apply_weights_s for item in produced),
            "tokens": self.tokens,
            "tokens_per_s": num_tokens / step_s,
            **_engines(produced),
            **components,
            **gamed_rewards.of_completions(produced),
            "samples": logged,
        }


def _engines(produced: Sequence[Produced]) -> dict[str, Any]:
    """How busy the engines were with the batch: means over their steps."""
    loads = [item.engine for item in produced if item.engine is not None]
    steps = sum(load.steps for load in loads)
    if not steps:
        return {}
    return {
        "engine_steps": steps,
        "engine_running": sum(load.running * load.steps for load in loads) / steps,
        "engine_waiting": sum(load.waiting * load.steps for load in loads) / steps,
        "engine_kv_cache_usage": max(load.kv_cache_usage for load in loads),
        "engine_cached_tokens": sum(load.cached_tokens for load in loads),
        "engine_computed_tokens": sum(load.computed_tokens for load in loads),
        **_canaries(loads),
    }


def _canaries(loads: Sequence[EngineLoad]) -> dict[str, float]:
    """Of the engine that is farthest from the learner."""
    nats = [load.canary_nats for load in loads if load.canary_nats is not None]
    bounds = [load.canary_bound_nats for load in loads if load.canary_bound_nats is not None]
    return {"engine_canary": max(nats), "engine_canary_bound": max(bounds)} if nats and bounds else {}


def _scoring(produced: Sequence[Produced]) -> dict[str, Any]:
    """Of experience that a reward service has scored."""
    scorings = [item.scoring for item in produced if item.scoring is not None]
    if not scorings:
        return {}
    names = sorted({name for scoring in scorings for name in scoring.components})
    return {
        **{f"reward_{name}": _mean(scoring.components.get(name, 0.0) for scoring in scorings) for name in names},
        "reward_mean": _mean(scoring.reward_mean for scoring in scorings),
        "reward_versions": sorted({scoring.model_version for scoring in scorings}),
        "score_s": max(scoring.score_s for scoring in scorings),
    }


class _Lags:
    """Versions between who acted and who learns: of each token where tokens have versions, else of each ticket."""

    def __init__(self, step: int, produced: Sequence[Produced]) -> None:
        counted = [
            (step - version, number)
            for item in produced
            for version, number in (item.version_tokens or ((item.min_policy_version, 1),))
        ]
        self.max = max(lag for lag, _ in counted)
        self.count = sum(number for _, number in counted)
        self.sum = sum(lag * number for lag, number in counted)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _act_s(produced: Sequence[Produced]) -> float:
    """Seconds that acting took for this batch, by the actor that worked longest."""
    per_actor: dict[str, float] = {}
    for item in produced:
        busy_s = item.timing.act_s - item.timing.wait_weights_s
        per_actor[item.header.actor_id] = per_actor.get(item.header.actor_id, 0.0) + busy_s
    return max(per_actor.values())
