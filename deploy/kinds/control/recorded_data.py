"""The recorded episodes of a run: read, held against its env, and divided into what is learnt from and what is held
out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rollcall.actors.control.recording import check_spaces_of, read_recorded
from rollcall.actors.envs.observations import Space
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.recorded import RecordedEpisodes
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.recipe.offline_config import RecordedDataConfig
from rollcall.learners.data.recorded import RecordedSteps
from rollcall.learners.maths.distributions import ActionDistribution


@dataclass(frozen=True)
class RecordedData:
    """Both sides."""

    train: RecordedSteps
    held_out: RecordedSteps | None
    facts: dict[str, Any]  # for the summary


def load_recorded(
    config: RecordedDataConfig, spaces: tuple[Space, Space], distribution: ActionDistribution, *, seed: int
) -> RecordedData:
    """All of it, or an error.

    Raises:
      BadInput: in one line: no such set, a damaged one, one of another space, or too few episodes.
    """
    recorded, train = _joined([_read(source, spaces) for source in config.sources]), ", ".join(config.sources)
    order = np.random.default_rng(derive_seed(seed, "held_out")).permutation(recorded.num_episodes).tolist()
    if config.eval is not None:
        apart = _read(config.eval, spaces)
        held_out: RecordedSteps | None = RecordedSteps.of(apart, range(apart.num_episodes), distribution.from_env)
        held, kept = 0, order
    else:
        held = max(1, round(config.eval_fraction * len(order))) if config.eval_fraction else 0
        kept = order[held:]
        if not kept:
            raise BadInput(
                f"{train}: too few episodes ({len(order)}): some are needed to learn from, and some to hold "
                "out: record more, or data.eval_fraction=0"
            )
        held_out = RecordedSteps.of(recorded, sorted(order[:held]), distribution.from_env) if held else None
    if config.episodes is not None and config.episodes > len(kept):
        raise BadInput(
            f"{train}: data.episodes={config.episodes}, and there are {len(kept)} to learn from"
            f"{f' beside {held} held out' if held else ''}: record more, or ask for fewer"
        )
    taken = sorted(kept[: config.episodes])
    learnt = RecordedSteps.of(recorded, taken, distribution.from_env)
    facts = {
        "episodes": len(taken),
        "recorded_steps": len(learnt),
        "held_out_episodes": apart.num_episodes if config.eval is not None else held,
        "recorded_return_mean": float(recorded.returns[taken].mean()),
        "recorded_return_std": float(recorded.returns[taken].std()),
    }
    return RecordedData(learnt, held_out, facts)


def _joined(sets: Sequence[RecordedEpisodes]) -> RecordedEpisodes:
    """One after the other."""
    if len(sets) == 1:
        return sets[0]
    ends = np.cumsum([0, *(item.num_steps for item in sets[:-1])])
    masked = next((item.action_mask for item in sets if item.action_mask is not None), None)
    masks = [
        np.ones((item.num_steps, *masked.shape[1:]), bool) if item.action_mask is None else item.action_mask
        for item in sets
        if masked is not None
    ]
    return replace(
        sets[0],
        acted_by="unknown",
        observations=_by_name([item.observations for item in sets]),
        last_observations=_by_name([item.last_observations for item in sets]),
        actions=np.concatenate([item.actions for item in sets]),
        rewards=np.concatenate([item.rewards for item in sets]),
        terminated=np.concatenate([item.terminated for item in sets]),
        truncated=np.concatenate([item.truncated for item in sets]),
        episode_ends=np.concatenate([item.episode_ends + end for item, end in zip(sets, ends, strict=True)]),
        action_mask=np.concatenate(masks) if masks else None,
    )


def _by_name(arrays: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([item[name] for item in arrays]) for name in arrays[0]}


def _read(source: str, spaces: tuple[Space, Space]) -> RecordedEpisodes:
    recorded = read_recorded(source)
    check_spaces_of(source, recorded, *spaces)
    return recorded
