"""What a policy that games its reward leaves in the numbers of its batches: completions that repeat themselves or each
other, a reward that no longer orders them as the task does, and a task's own measure that falls from its best.
Plain numbers; must never decide anything."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rollcall.cluster.messages.attempt import Produced, SampleStats

FIRST_STEPS = 5  # learner steps whose mean later ones are held against
TASK = "task"  # the component of a reward that is the task's own, which nobody learns from
_FOLLOWED = (
    *("length_mean", "entropy", "repeated_ngrams", "identical_fraction", "reward_disagreement"),
    *("reward_task", "task_std", "reward_std"),
)
_SMOOTHING = 0.3  # of both rewards: a mean over about six steps
_DEVIATIONS = 3.0  # a loss within so many standard errors is noise: the best of many steps is also the luckiest


def of_completions(produced: Sequence[Produced]) -> dict[str, float]:
    """Of a batch's completions.

    repeated_ngrams: within a completion, the mean. identical_fraction: completions that are, token by token, as an
    earlier one of the batch. Only of a reward that is not the task's own (`reward_components["task"]` is that):
    reward_std and task_std, how far both spread; task_error, the standard error of the task's mean; reward_agreement:
    of pairs of completions of one prompt that the task tells apart, the share that the reward orders alike, an equal
    reward being half right.
    """
    samples = [sample for item in produced for sample in item.samples]
    found = {"repeated_ngrams": _mean(sample.repeated_ngrams for sample in samples)}
    digests = [sample.digest for sample in samples if sample.digest]
    if digests:
        found["identical_fraction"] = 1 - len(set(digests)) / len(digests)
    if any(TASK not in sample.reward_components for sample in samples):
        return found
    found["reward_std"] = _std([sample.reward for sample in samples])
    found["task_std"] = _std([_task(sample) for sample in samples])
    error = _error_of_the_mean([[_task(sample) for sample in item.samples] for item in produced])
    found |= {} if error is None else {"task_error": error}
    right, pairs = 0.0, 0
    for item in produced:
        for one, other in itertools.combinations(item.samples, 2):
            apart = _task(one) - _task(other)
            if apart:
                by_reward = one.reward - other.reward
                right += 0.5 if by_reward == 0 else float((by_reward > 0) == (apart > 0))
                pairs += 1
    return found | ({"reward_agreement": right / pairs} if pairs else {})


def followed(kept: dict[str, float], record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a step's record against the steps before it. `kept`: what is known of those; changed.

    first_steps: means over the first FIRST_STEPS learner steps that have the number, by its key. Once these are known,
    and where the reward is not the task's own, of both rewards, smoothed over some steps: reward_gain and task_gain,
    how far they are above the first steps' mean, in standard deviations of the first steps' completions (where a reward
    model is swapped, its reward goes on from where its predecessor's was: their scales have nothing in common);
    task_reward_lost, how far the task's is below its best so far, as a share of that, less what three standard errors
    of both explain. A task that gave all of the first steps' completions one reward has no task_gain: it measures
    nothing.
    """
    first = _first_steps(kept, record)
    found: dict[str, Any] = {"first_steps": first} if first else {}
    if any(record.get(key) is None for key in ("reward_task", "task_error", "reward_mean")):
        return found
    reward, task = _smoothed_reward(kept, record), _smooth(kept, "task", float(record["reward_task"]))
    lost = _lost(kept, task, error=float(record["task_error"]))
    if "task_std" not in first:
        return found
    found["task_reward_lost"] = lost
    found["reward_gain"] = _gain(reward, kept["reward.first"] / FIRST_STEPS, first["reward_std"])
    if first["task_std"]:
        found["task_gain"] = _gain(task, first["reward_task"], first["task_std"])
    return found


def _gain(now: float, first: float, deviation: float) -> float:
    return (now - first) / deviation if deviation else 0.0


def _first_steps(kept: dict[str, float], record: Mapping[str, Any]) -> dict[str, float]:
    first: dict[str, float] = {}
    for key in _FOLLOWED:
        value = record.get(key)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            continue
        count = kept.get(f"{key}.count", 0.0)
        if count < FIRST_STEPS:
            count = kept[f"{key}.count"] = count + 1
            kept[f"{key}.sum"] = kept.get(f"{key}.sum", 0.0) + value
        if count == FIRST_STEPS:
            first[key] = kept[f"{key}.sum"] / FIRST_STEPS
    return first


def _smoothed_reward(kept: dict[str, float], record: Mapping[str, Any]) -> float:
    """On the scale of the first reward model."""
    value, version = float(record["reward_mean"]), _number_of(record.get("reward_versions"))
    shift = kept.get("reward.shift", 0.0)
    if kept.get("reward.version", version) != version:
        shift = kept["reward.shift"] = kept["reward.last"] - value
    kept["reward.version"], kept["reward.last"] = version, value + shift
    if kept.get("reward.count", 0.0) < FIRST_STEPS:
        kept["reward.count"] = kept.get("reward.count", 0.0) + 1
        kept["reward.first"] = kept.get("reward.first", 0.0) + value + shift
    return _smooth(kept, "reward", value + shift)


def _number_of(versions: Sequence[str] | None) -> float:
    return float(zlib.crc32("\n".join(versions or ()).encode()))


def _smooth(kept: dict[str, float], name: str, value: float) -> float:
    before = kept.get(f"{name}.smooth", value)
    kept[f"{name}.smooth"] = before + _SMOOTHING * (value - before)
    return kept[f"{name}.smooth"]


def _lost(kept: dict[str, float], task: float, *, error: float) -> float:
    """`error`: the standard error of this step's mean."""
    variance = error**2
    if "task.variance" in kept:
        variance = (1 - _SMOOTHING) ** 2 * kept["task.variance"] + _SMOOTHING**2 * error**2
    kept["task.variance"] = variance
    if task >= kept.get("task.best", -math.inf):
        kept["task.best"], kept["task.best_variance"] = task, variance
    noise = _DEVIATIONS * math.sqrt(variance + kept["task.best_variance"])
    fallen = kept["task.best"] - task - noise
    return fallen / abs(kept["task.best"]) if fallen > 0 and kept["task.best"] else 0.0


def _error_of_the_mean(groups: Sequence[Sequence[float]]) -> float | None:
    """The standard error of the mean over all: completions of one prompt are no independent draws, prompts are."""
    independent = [_mean(group) for group in groups] if len(groups) > 1 else list(groups[0])
    if len(independent) < 2:
        return None
    return _std(independent) / math.sqrt(len(independent) - 1)


def _task(sample: SampleStats) -> float:
    return sample.reward_components[TASK]


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _std(values: Sequence[float]) -> float:
    """0 where all are one number, to the bit: a mean of those is rounded."""
    if min(values) == max(values):
        return 0.0
    mean = _mean(values)
    return math.sqrt(_mean((value - mean) ** 2 for value in values))
