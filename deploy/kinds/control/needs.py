"""What a control run needs of memory, from its settings: its networks are small, and are built to be asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.plan import memory
from rollcall.deploy.plan.memory import Step
from rollcall.deploy.plan.model_size import saved_bytes
from rollcall.deploy.plan.needs import Needs, Part, Role, counted, parts
from rollcall.learners.loop import footprint

EPISODE_STEPS = 1000  # of an episode, where units are episodes, whose length is not known before
BATCHES = 3  # of trajectories: one learnt from, one waiting, one being made
SUM_TREE_BYTES = 9  # of a kept step: its priority, and its share of the sums above
RECORDED_BYTES = 64  # of a step beside its observation: action, reward, log-probability, ends, statistics


def control_needs(config: RunConfig, observations: spaces.Space[Any], models: Mapping[str, nn.Module]) -> Needs:
    """`observations`: their space; `models`: as a learner has them."""
    size = sum(parameter.numel() for model in models.values() for parameter in model.parameters())
    steps = config.steps_per_batch or config.actors.num_envs * EPISODE_STEPS
    observation = _size_bytes(observations)
    batch = steps * (observation + RECORDED_BYTES)
    trained = steps if config.replay is None else config.replay.batch_size  # rows of a pass, at the most
    share = math.ceil(
        trained / max(1, int(getattr(config.algorithm, "num_minibatches", 1))) / config.learner.num_processes
    )
    floats = share * 4 * _numbers(observations)
    step = Step(share * _saved(models["actor_critic"], observations) + floats + memory.SMALL_BATCH)
    learner = memory.learner_parts(
        config.learner,
        base=memory.LEARNER,
        num_trained=size,
        num_frozen=0,
        step=step,
        published_bytes=4 * size,
        per_trained=footprint.per_trained(config.learner),
        per_frozen=4.0,
        shrink_step="algorithm.num_minibatches",
        language=False,
    )
    batches = Part("batches", 2 * batch, "actors.num_envs, actors.unroll_length", host=True)  # as they come, and joined
    kept, kept_on_disk = _kept(config, observation)
    envs = math.ceil(config.actors.num_envs / max(1, config.actors.num))
    steps_of_actor = math.ceil(steps / max(1, config.actors.num))
    acting = (
        Part("program", memory.GYM_ACTOR, host=True),
        Part("experience", 2 * steps_of_actor * (observation + RECORDED_BYTES), "actors.unroll_length", host=True),
        Part("weights", 4 * size, "policy", host=True),
        Part("envs", envs * observation, "actors.num_envs", host=True),
        *_gradients(config, models, observations),
    )
    found = [Role("learner process", (*learner, batches, *kept), config.learner.num_processes, "learner")]
    if config.actors.num:
        found.append(Role("actor", acting, config.actors.num))
    if config.eval.episodes:
        evaluating = (Part("program", memory.GYM_ACTOR, host=True), Part("weights", 4 * size, "policy", host=True))
        found.append(Role("evaluator", evaluating))
    found += _scoring(config)
    on_ray = config.runtime == "ray"
    if on_ray:
        ray = Part("programs", memory.RAY + memory.PARAMETER_SERVER, host=True)
        found.append(Role("Ray and parameter server", (ray,)))
    found.append(Role("driver", (Part("program", memory.DRIVER, host=True),)))
    return Needs(
        model=f"networks of {counted(size)} parameters",
        roles=tuple(found) if on_ray else (memory.together(found),),
        published_bytes=4 * size,
        trajectories_bytes=BATCHES * batch,
        checkpoint_bytes=size * (8 + footprint.optimizer_bytes(config.learner.optimizer)),
        checkpoints_kept=config.checkpoint.keep,
        begins_bytes=kept_on_disk,
        on_ray=on_ray,
    )


def _scoring(config: RunConfig) -> list[Role]:
    found = []
    if config.reward is not None or config.preferences is not None:
        programs = (Part("programs", memory.SCORING + memory.LEARNER, host=True),)
        found.append(Role("scoring and reward service", programs))
    if config.preferences is not None:
        found.append(Role("preference trainer", (Part("program", memory.LEARNER, host=True),)))
    return found


def _kept(config: RunConfig, observation: int) -> tuple[tuple[Part, ...], int]:
    """Of a full replay buffer: an observation a step, and what is known of it; in memory, and bytes on disk. Of pages
    that did not change a checkpoint has but names: all together they are the buffer, and what it was before."""
    replay = config.replay
    if replay is None:
        return (), 0
    tree = 0 if replay.prioritised is None else SUM_TREE_BYTES
    size = replay.capacity * (observation // config.env.num_frames + RECORDED_BYTES + tree)
    if replay.storage == "disk":
        return (), (2 + config.learner.num_processes) * size
    return parts(Part("replay", size, "replay.capacity, replay.storage=disk", host=True)), 2 * size


def _gradients(config: RunConfig, models: Mapping[str, nn.Module], space: spaces.Space[Any]) -> tuple[Part, ...]:
    """Of an actor that computes them: a network of its own with a gradient, and what a pass over a fragment keeps."""
    if not config.learns_from_gradients:
        return ()
    fragment = config.envs_per_shard * config.actors.unroll_length
    size = sum(parameter.numel() for parameter in models["actor_critic"].parameters())
    computing = fragment * _saved(models["actor_critic"], space) + 8 * size
    return (Part("gradient", computing, "actors.unroll_length", host=True),)


def _saved(network: nn.Module, space: spaces.Space[Any]) -> int:
    """Bytes of one observation that a training pass keeps."""
    many: Any = network
    lead = (2, 1) if many.is_recurrent else (2,)
    observations = {
        name: torch.zeros(*lead, *inner.shape, dtype=_dtype(inner)) for name, inner in many.observation_spaces.items()
    }
    return saved_bytes(network, lambda: network(observations)) // 2


def _dtype(space: spaces.Space[Any]) -> torch.dtype:
    return torch.from_numpy(np.zeros(1, space.dtype)).dtype


def _size_bytes(space: spaces.Space[Any]) -> int:
    return sum(
        inner.dtype.itemsize * math.prod(inner.shape or (1,)) for inner in _leaves(space) if inner.dtype is not None
    )


def _numbers(space: spaces.Space[Any]) -> int:
    return sum(math.prod(inner.shape or (1,)) for inner in _leaves(space))


def _leaves(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    if isinstance(space, spaces.Dict):
        return [leaf for inner in space.spaces.values() for leaf in _leaves(inner)]
    if isinstance(space, spaces.Tuple):
        return [leaf for inner in space.spaces for leaf in _leaves(inner)]
    return [space]
