"""How each member of a run is made from its config: module-level functions, so that they travel to the processes that
need them. Knows what the parts need of each other; never starts anything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from gymnasium import spaces
from torch import nn

from rollcall.actors.evaluation import Evaluator
from rollcall.actors.gym_actor import GymActor
from rollcall.actors.policy import Policy, WeightsSource
from rollcall.cluster.errors import BadInput
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config import RunConfig
from rollcall.learners.algorithm import Algorithm
from rollcall.learners.collective import Collective
from rollcall.learners.control import ControlExperience
from rollcall.learners.learner import Learner
from rollcall.learners.networks import ActorCritic, build_actor_critic
from rollcall.learners.normaliser import RewardNormaliser
from rollcall.learners.policy import TorchPolicy

POLICY_ID = "policy"


@dataclass(frozen=True)
class Spaces:
    """What one env shows and takes."""

    observation: spaces.Space[Any]
    action: spaces.Space[Any]


def build_policy(config: RunConfig, its_spaces: Spaces) -> Policy:
    return TorchPolicy(its_spaces.observation, its_spaces.action, config.policy)


def build_actor(config: RunConfig, its_spaces: Spaces, actor_id: str, source: WeightsSource) -> GymActor:
    torch.set_num_threads(config.actors.torch_threads)
    return GymActor(
        actor_id=actor_id,
        run_seed=config.seed,
        env_config=config.env,
        config=config.actors,
        policy_factory=partial(build_policy, config, its_spaces),
        weights_source=source,
        policy_id=POLICY_ID,
    )


def build_evaluator(config: RunConfig, its_spaces: Spaces) -> Evaluator:
    torch.set_num_threads(config.actors.torch_threads)
    return Evaluator(config.env, config.eval, partial(build_policy, config, its_spaces))


def learner_models(config: RunConfig, its_spaces: Spaces, algorithm: Algorithm) -> dict[str, nn.Module]:
    """The models of a run, the same for the same seed.

    Raises:
      BadInput: where the spaces and the settings do not fit.
    """
    try:
        network = build_actor_critic(
            its_spaces.observation,
            its_spaces.action,
            config.policy,
            with_critic=algorithm.needs_critic,
            seed=derive_seed(config.seed, "network"),
        )
    except ValueError as error:
        raise BadInput(str(error)) from None
    models: dict[str, nn.Module] = {"actor_critic": network, **algorithm.extra_models()}
    if config.policy.normalise_rewards:
        discount = getattr(config.algorithm, "discount", 1.0)
        models["reward_normaliser"] = RewardNormaliser(discount, config.policy.reward_clip)
    return models


def build_learner(config: RunConfig, its_spaces: Spaces, log: Path, collective: Collective) -> Learner:
    algorithm = config.algorithm_class(config.algorithm)
    models = learner_models(config, its_spaces, algorithm)
    return Learner(
        models=models,
        algorithm=algorithm,
        config=config.learner,
        policy_id=POLICY_ID,
        run_seed=config.seed,
        experience=ControlExperience(
            cast(ActorCritic, models["actor_critic"]),
            cast("RewardNormaliser | None", models.get("reward_normaliser")),
        ),
        compile_loss=config.resolved().learner.compile == "on",
        consumption_log=log,
        collective=collective,
    )
