"""How each member of a control run is made from its config. The object travels to the processes that need them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from gymnasium import spaces
from torch import nn

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.control.gym_actor import GymActor
from rollcall.actors.control.segments import ToEnv
from rollcall.actors.control.state import is_exact
from rollcall.actors.envs.environment import make_vector_env, spaces_of
from rollcall.actors.envs.observations import PLAIN_NAME
from rollcall.actors.policy import Policy, WeightsSource
from rollcall.actors.trajectory_scoring import RewardEndpoint, SegmentScoring, TrajectoryScorer
from rollcall.cluster.errors import BadInput
from rollcall.cluster.loop.task_source import ShardSource
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config import plugins
from rollcall.deploy.config.checks import out_of_reach
from rollcall.deploy.config.recipe.reward_config import RewardConfig
from rollcall.deploy.config.recipe.run_config import RunConfig, is_function
from rollcall.deploy.kinds.control import cloning, experts, initial_weights
from rollcall.deploy.kinds.control.compared_segments import Segments, first_model
from rollcall.deploy.kinds.control.needs import control_needs
from rollcall.deploy.kinds.control.outside import outside_shards
from rollcall.deploy.kinds.kind import POLICY_ID, Preparation, scorer_of
from rollcall.deploy.kinds.outside import OutsideShards
from rollcall.deploy.kinds.preference_trainer import CURRENT, PreferenceTraining
from rollcall.deploy.kinds.raters import programs
from rollcall.deploy.plan.gpus import Shares
from rollcall.deploy.plan.needs import Needs
from rollcall.deploy.preferences.round_book import REWARD_MODELS
from rollcall.deploy.report.counted import ENV_STEPS, Counted
from rollcall.deploy.rundir.files import INIT_FROM, consumption_log
from rollcall.learners.algorithm import LearnsFromGradients, for_acting, with_own_models
from rollcall.learners.collators.collator import Collator
from rollcall.learners.collators.control import ControlCollator
from rollcall.learners.collators.gradients import GradientCollator
from rollcall.learners.collators.replay import ReplayCollator
from rollcall.learners.collective import Collective
from rollcall.learners.loop.fragment_gradients import FragmentGradients
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.action_distribution import distribution_of
from rollcall.learners.models.judging import Judging
from rollcall.learners.models.networks import ActorCritic, build_actor_critic
from rollcall.learners.models.normaliser import RewardNormaliser
from rollcall.learners.models.policy import TorchPolicy
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.models.reward_models import SegmentArchitecture
from rollcall.reward_service.scorer import Taken

_log = logging.getLogger("rollcall")


@dataclass(frozen=True)
class ControlFactory:
    """Of a run with a gymnasium env."""

    config: RunConfig
    run_directory: Path
    reward: RewardEndpoint | None = None

    drive: ClassVar[Literal["online"]] = "online"
    counts: ClassVar[Counted] = ENV_STEPS
    generates: ClassVar[bool] = False
    scored: ClassVar[Taken] = "segment"
    evaluates_at_start: ClassVar[bool] = False
    actor_prefix: ClassVar[str] = "gym"
    model_directory: ClassVar[None] = None
    weight_transfer: ClassVar[Literal["object_store"]] = "object_store"

    @property
    def modules(self) -> Sequence[str]:
        expert = self.config.expert
        functions = (expert,) if expert is not None and is_function(expert) else ()
        return plugins.modules_of(self.config.env.id, self.config.algorithm_name, *functions)

    @cached_property
    def spaces(self) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
        """(observation space, action space)"""
        return spaces_of(self.config.env)

    @property
    def label(self) -> str:
        return self.config.env.id

    @property
    def can_be_exact(self) -> bool:
        """Env state can be captured, and was seen to restore exactly."""
        return self.config.actors.outside is None and is_exact(
            partial(make_vector_env, self.config.env, self.config.envs_per_shard)
        )

    @property
    def eval_episodes(self) -> int:
        return self.config.eval.episodes

    def check(self) -> None:
        models = self.models()
        for text in out_of_reach(self.config.env.id, self.spaces[1], self.config.policy):
            _log.warning(text)
        if self.config.policy.init_from is not None:
            initial_weights.take_up(models, self.run_directory / INIT_FROM)
        if self.config.policy.warm_start is not None:
            cloning.check(self.config, self.run_directory)
        _ = self._acting_policy()

    def needs(self) -> Needs:
        return control_needs(self.config, self.spaces[0], self.models())

    def preparations(self) -> Iterator[Preparation]:
        """A clone, where the policy is to begin as one. A reward that is learnt from raters begins with a model that
        nobody has trained yet."""
        if self.config.policy.warm_start is not None and cloning.clone_of(self.run_directory) is None:
            yield cloning.cloning(self.config, self.run_directory)
        if self.config.preferences is not None:
            first_model(self._reward_models, self._architecture, seed=derive_seed(self.config.seed, "reward"))
        yield from ()

    @property
    def reward_config(self) -> RewardConfig | None:
        preferences = self.config.preferences
        if preferences is None:
            return self.config.reward
        return RewardConfig(
            scorer=RewardModelConfig(path=str(self._reward_models / CURRENT)), patience_s=preferences.patience_s
        )

    @property
    def labelling(self) -> LabellingConfig | None:
        return None if self.config.preferences is None else LabellingConfig()

    @property
    def asks_people(self) -> bool:
        return self.config.preferences is not None and self.config.preferences.rater == "people"

    @property
    def _reward_models(self) -> Path:
        return self.run_directory / REWARD_MODELS

    @property
    def _architecture(self) -> SegmentArchitecture:
        observations, actions = self.spaces
        assert self.config.preferences is not None and observations.shape is not None
        return SegmentArchitecture(
            observation_shape=observations.shape,
            num_actions=int(actions.n) if isinstance(actions, spaces.Discrete) else None,
            first_action=int(actions.start) if isinstance(actions, spaces.Discrete) else 0,
            action_shape=None if isinstance(actions, spaces.Discrete) else actions.shape,
            members=self.config.preferences.members,
            hidden_sizes=self.config.preferences.hidden_sizes,
        )

    def with_reward(self, endpoint: RewardEndpoint) -> ControlFactory:
        return replace(self, reward=endpoint)

    def with_token_budget(self, tokens: int) -> None:
        """There are no tokens."""

    def with_gpus(self, shares: Shares) -> ControlFactory:
        return self

    def scorer(self) -> TrajectoryScorer:
        assert self.reward is not None
        return scorer_of(self.reward, SegmentScoring(self._to_env))

    @property
    def trains_on_preferences(self) -> bool:
        return self.config.preferences is not None

    @property
    def preference_training(self) -> PreferenceTraining | None:
        preferences = self.config.preferences
        if preferences is None or self.reward is None:
            return None
        seed = derive_seed(self.config.seed, "preferences", preferences.seed)
        return PreferenceTraining(
            config=preferences,
            endpoint=self.reward,
            directory=self._reward_models,
            total_steps=self.config.learner_steps or 1,
            compared=Segments(preferences, self._architecture, self._to_env, self.config.env.id, seed),
            raters=partial(programs, preferences),
        )

    @property
    def _to_env(self) -> ToEnv:
        return distribution_of(self.config.policy, self.spaces[1]).to_env

    def work(self) -> ShardSource:
        return ShardSource(self.config.actors.num_shards, self.config.algorithm_class.unit)

    def policy(self) -> Policy:
        return TorchPolicy(*self.spaces, self.config.policy, judging=self._judging)

    @property
    def _judging(self) -> Judging | None:
        """What is kept by priority may have its first one from the actor."""
        replay = self.config.replay
        if replay is None or replay.prioritised is None or replay.prioritised.initial != "actor":
            return None
        return Judging(float(getattr(self.config.algorithm, "discount", 1.0)), replay.n_step)

    def _acting_policy(self) -> Policy:
        """Of actors: beside an expert, where the run has one."""
        learner = self.policy()
        if self.config.expert is None:
            return learner
        stored = distribution_of(self.config.policy, self.spaces[1]).from_env
        return experts.taught(learner, self.config.algorithm, self.spaces, self.run_directory, stored)

    @property
    def outside(self) -> OutsideShards | None:
        return outside_shards(self.config, self.spaces, self.policy)

    def preload(self, role: Literal["actor", "learner"]) -> None:
        """It has all that it needs."""

    def actor(self, actor_id: str, source: WeightsSource[Weights]) -> GymActor:
        torch.set_num_threads(self.config.actors.torch_threads)
        return GymActor(
            actor_id=actor_id,
            run_seed=self.config.seed,
            env_config=self.config.env,
            config=self.config.actors,
            policy_factory=self._acting_policy,
            weights_source=source,
            gradients=self._gradients(),
            # At lag 0 a step boundary has an exact state: a run that is stopped within a batch goes back to it.
            can_go_back=self.config.runtime == "serial" or self.config.max_policy_lag == 0,
        )

    def _gradients(self) -> FragmentGradients | None:
        """For an actor of a run that learns from those."""
        if not self.config.learns_from_gradients:
            return None
        algorithm: LearnsFromGradients = self.config.build_algorithm()
        return FragmentGradients(self.models(), algorithm.of_actors, spaces=self.spaces)

    def evaluator(self) -> Evaluator:
        torch.set_num_threads(self.config.actors.torch_threads)
        return Evaluator(self.config.env, self.config.eval, self.policy)

    def models(self) -> dict[str, nn.Module]:
        """The models of a run, the same for the same seed.

        Raises:
          BadInput: where the spaces and the settings do not fit.
        """
        config, algorithm = self.config, self.config.build_algorithm()
        try:
            network = build_actor_critic(
                *self.spaces,
                config.policy,
                with_critic=algorithm.needs.critic,
                seed=derive_seed(config.seed, "network"),
            )
            models = with_own_models(
                algorithm, {"actor_critic": network}, seed=derive_seed(config.seed, "networks of the algorithm")
            )
        except ValueError as error:
            raise BadInput(str(error)) from None
        if config.policy.normalise_rewards:
            discount = getattr(config.algorithm, "discount", 1.0)
            models["reward_normaliser"] = RewardNormaliser(discount, config.policy.reward_clip)
        return models

    def _collator(self, models: Mapping[str, nn.Module]) -> Collator[Any, Any]:
        config, network = self.config, cast(ActorCritic, models["actor_critic"])
        if config.learns_from_gradients:
            return GradientCollator()
        if config.replay is None:
            return ControlCollator(network, cast("RewardNormaliser | None", models.get("reward_normaliser")))
        return ReplayCollator(
            config.replay,
            discount=float(getattr(config.algorithm, "discount", 1.0)),
            num_envs=config.actors.num_envs,
            seed=derive_seed(config.seed, "replay"),
            total_env_steps=config.total_env_steps or (config.learner_steps or 1) * (config.steps_per_batch or 1),
            steps_per_batch=config.steps_per_batch,
            network=network,
            stacked={PLAIN_NAME: config.env.num_frames} if self._frames_are_stacked else {},
            directory=self.run_directory / "replay",
        )

    @property
    def _frames_are_stacked(self) -> bool:
        return self.config.env.num_frames > 1 and isinstance(self.spaces[0], spaces.Box)

    def learner(self, collective: Collective) -> Learner:
        config, models = self.config, self.models()
        if config.policy.init_from is not None:
            initial_weights.take_up(models, self.run_directory / INIT_FROM)
        if (clone := cloning.clone_of(self.run_directory)) is not None:
            initial_weights.take_up(models, clone)
        algorithm = config.build_algorithm()
        return Learner(
            models=models,
            algorithm=algorithm,
            published=for_acting(algorithm, models),
            config=config.learner,
            policy_id=POLICY_ID,
            run_seed=config.seed,
            spaces=self.spaces,
            collator=self._collator(models),
            compiles=config.resolved().learner.compile == "on",
            consumption_log=consumption_log(self.run_directory),
            collective=collective,
        )
