"""A run on a recorded set: from its episodes to a policy, judged on held-out ones and in the env as it learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from rollcall.actors.control.evaluation import Evaluator
from rollcall.actors.envs.environment import spaces_of
from rollcall.actors.envs.observations import Space
from rollcall.cluster.errors import BadInput
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.recipe.offline_config import OfflineConfig
from rollcall.deploy.kinds.control import initial_weights
from rollcall.deploy.kinds.control.recorded_data import RecordedData, load_recorded
from rollcall.deploy.kinds.kind import POLICY_ID, Preparation
from rollcall.deploy.plan import memory
from rollcall.deploy.plan.needs import Needs, Part, Role, counted
from rollcall.deploy.report.counted import RETURN
from rollcall.deploy.rundir.files import INIT_FROM
from rollcall.learners.algorithm import Context, for_acting, with_own_models
from rollcall.learners.batches.replay_batch import ReplayMinibatch
from rollcall.learners.collators.recorded import RecordedCollator
from rollcall.learners.collective import Collective
from rollcall.learners.data.recorded import RecordedSteps
from rollcall.learners.data.source import ShuffledSource
from rollcall.learners.loop import footprint
from rollcall.learners.loop.learner import Learner, resolve_device
from rollcall.learners.models.action_distribution import distribution_of
from rollcall.learners.models.networks import ActorCritic, build_actor_critic
from rollcall.learners.models.policy import TorchPolicy

_JUDGED_TOGETHER = 4096  # held-out steps of one forward pass


class OfflineControlRun:
    """One run."""

    drive: Literal["offline"] = "offline"
    policy_id = POLICY_ID
    is_over = False

    def __init__(self, config: OfflineConfig, directory: Path) -> None:
        self._config = config
        self._directory = directory

    def preparations(self) -> Iterator[Preparation]:
        _ = self._data, self._models
        yield from ()

    @cached_property
    def spaces(self) -> tuple[Space, Space]:
        """(observation space, action space)"""
        return spaces_of(self._config.env)

    @cached_property
    def _data(self) -> RecordedData:
        config = self._config
        distribution = distribution_of(config.policy, self.spaces[1])
        return load_recorded(config.data, self.spaces, distribution, seed=config.seed)

    def needs(self) -> Needs:
        config, models = self._config, self.models()
        size = sum(parameter.numel() for model in models.values() for parameter in model.parameters())
        held = [steps.size_bytes for steps in (self._data.train, self._data.held_out) if steps is not None]
        parts = (
            Part("program", memory.LEARNER, host=True),
            Part("recorded episodes", 2 * sum(held), "data.episodes", host=True),
            Part("networks", size * (8 + footprint.optimizer_bytes(config.learner.optimizer)), "policy"),
            Part("batch", memory.SMALL_BATCH, "batch_size"),
        )
        return Needs(
            model=f"networks of {counted(size)} parameters",
            roles=(Role("trainer", parts, 1, "learner"),),
            checkpoint_bytes=size * (8 + footprint.optimizer_bytes(config.learner.optimizer)),
            checkpoints_kept=config.checkpoint.keep,
            on_ray=False,
        )

    def models(self) -> dict[str, nn.Module]:
        """New ones, the same for the same seed.

        Raises:
          BadInput: where the spaces and the settings do not fit.
        """
        config, algorithm = self._config, self._config.build_algorithm()
        try:
            network = build_actor_critic(
                *self.spaces,
                config.policy,
                with_critic=algorithm.needs.critic,
                seed=derive_seed(config.seed, "network"),
            )
            models = with_own_models(algorithm, {"actor_critic": network}, seed=derive_seed(config.seed, "networks"))
        except ValueError as error:
            raise BadInput(str(error)) from None
        return models

    @cached_property
    def _models(self) -> dict[str, nn.Module]:
        """Those that the run begins with. What normalises observations has seen the whole set, and stays so."""
        models = self.models()
        if self._config.policy.init_from is not None:
            initial_weights.take_up(models, self._directory / INIT_FROM)
            return models
        network = models["actor_critic"]
        assert isinstance(network, ActorCritic)
        seen = {name: torch.from_numpy(array)[None] for name, array in self._data.train.observations.items()}
        network.update_normaliser(seen, torch.ones(1, len(self._data.train), dtype=torch.bool))
        return models

    @cached_property
    def steps(self) -> int:
        return self._config.steps(len(self._data.train))

    @property
    def eval_every(self) -> int:
        return self._config.eval.every_steps or self.steps

    @cached_property
    def source(self) -> ShuffledSource[int]:
        return ShuffledSource(
            range(len(self._data.train)),
            batch_size=self._config.batch_size,
            steps=self.steps,
            seed=derive_seed(self._config.seed, "batches"),
        )

    @cached_property
    def _algorithm(self) -> Any:
        return self._config.build_algorithm()

    @property
    def _discount(self) -> float:
        return float(getattr(self._config.algorithm, "discount", 1.0))

    @cached_property
    def learner(self) -> Learner:
        config = self._config
        return Learner(
            models=self._models,
            algorithm=self._algorithm,
            published=for_acting(self._algorithm, self._models),
            config=config.learner,
            policy_id=self.policy_id,
            run_seed=config.seed,
            collator=RecordedCollator(self._data.train, discount=self._discount),
            spaces=self.spaces,
            compiles=config.learner.compile == "on",
        )

    def save(self, checkpoint: Path) -> None:
        """The learner's state is all there is."""

    def restore(self, checkpoint: Path) -> None: ...

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self._config.env, self._config.eval, lambda: TorchPolicy(*self.spaces, self._config.policy))

    def evaluate(self, step: int) -> Mapping[str, Any]:
        """In the env, with the algorithm's loss on what is held out."""
        torch.set_num_threads(self._config.acting_threads)
        found: dict[str, Any] = {"mean": None, "std": None, "n": 0, "unit": RETURN, "eval_loss": self._held_out_loss()}
        if self._config.eval.episodes:
            result = self._evaluator.evaluate(self.learner.weights(epoch=0, version=step))
            found |= {"mean": result.mean, "std": result.std, "n": result.n, "unfinished": result.unfinished}
        return found

    @torch.no_grad()
    def _held_out_loss(self) -> float | None:
        """A mean over the held-out steps."""
        steps = self._data.held_out
        if steps is None:
            return None
        _ = self.learner  # which has put the models where they learn
        context = Context(self._models, torch.Generator(), Collective(), self.spaces)
        total = 0.0
        for begin in range(0, len(steps), _JUDGED_TOGETHER):
            total += float(self._algorithm.loss(context, self._part(steps, begin)).loss)
        return total

    def _part(self, steps: RecordedSteps, begin: int) -> ReplayMinibatch:
        index = np.arange(begin, min(begin + _JUDGED_TOGETHER, len(steps)))
        device = resolve_device(self._config.learner.device)
        rows = steps.rows(index, discount=self._discount).map(lambda array: torch.from_numpy(array).to(device))
        return ReplayMinibatch(rows, len(steps), torch.from_numpy(index).to(device), len(steps))

    def finish(self, steps_done: int) -> Mapping[str, Any]:
        if "_evaluator" in self.__dict__:
            self._evaluator.close()
        return {"recorded": self._data.facts}
