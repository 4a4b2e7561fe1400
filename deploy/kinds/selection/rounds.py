"""A run in rounds: in each its own policy makes demonstrations, and imitates them. How they are made, a collector
knows; the loop is the offline drive's, the loss is sft.py's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from rollcall.actors.language.lm_evaluation import LMEvaluator
from rollcall.actors.trajectory_scoring import RewardEndpoint
from rollcall.cluster.errors import RollcallError
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.config.recipe.reward_config import RewardConfig
from rollcall.deploy.kinds.kind import POLICY_ID, Preparation, ServeCritic
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.models import language_models, policy_layout
from rollcall.deploy.kinds.language.needs import supervised_needs
from rollcall.deploy.kinds.selection.making import Generation, check_single_turn
from rollcall.deploy.plan.needs import Needs
from rollcall.deploy.report.counted import BROKEN
from rollcall.learners.algorithms.language.sft import SFT
from rollcall.learners.algorithms.language.sft_config import SFTConfig
from rollcall.learners.collators.demonstrations import DemonstrationCollator
from rollcall.learners.data.demonstrations import Demonstration
from rollcall.learners.data.source import ShuffledSource
from rollcall.learners.loop.footprint import frozen_dtype, trained_dtype
from rollcall.learners.loop.learner import Learner, resolve_device
from rollcall.learners.models.language.lm_policy_config import WarmStartConfig
from rollcall.learners.models.language.lora import merged_parameters

Measure = Callable[[str, str], float]  # of (prompt, response): 1 where it breaks a principle, else 0

ROUNDS = "rounds"  # of the run directory: a directory for what each round made
GIVEN = "given_learner"  # of the run directory: the learner as it was before its first step
GPU_SHARE = 0.4  # of its memory, for an engine beside its learner


class RoundSettings(Protocol):
    """Of an algorithm that works in rounds."""

    @property
    def rounds(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def restart(self) -> bool: ...
    @property
    def token_budget(self) -> int: ...


class Collector(Protocol):
    """Makes a round's demonstrations."""

    @property
    def measure(self) -> Measure | None:
        """What a held-out answer is judged by; None: the task."""

    def collect(self, number: int, directory: Path, hands: Hands) -> Sequence[Demonstration] | None:
        """The same demonstrations whenever it is asked: what was made stands in `directory`, where an earlier process
        may have begun. None: a stop was requested before they were made.

        Raises:
          RollcallError: where there are none.
        """

    def facts(self, directory: Path) -> Mapping[str, Any]:
        """What there is to say of a round that was made, for the summary."""


class Hands:
    """What a collector works with: the run's engine under the round's weights, and where to have things scored."""

    def __init__(self, members: LanguageFactory, weights: Callable[[], Weights]) -> None:
        """`weights`: those of the policy now."""
        self.members = members
        self.stop_requested: Callable[[], bool] = lambda: False
        self.critic: ServeCritic = lambda config: config
        self._weights = weights
        self._generation: Generation | None = None

    def begin(self, reward: RewardEndpoint | None, stop_requested: Callable[[], bool], serve: ServeCritic) -> None:
        self.stop_requested, self.critic = stop_requested, serve
        if reward is not None:
            self.members = self.members.with_reward(reward)

    def generation(self) -> Generation:
        """Under the weights of now; the engine is started when it is first asked for."""
        if self._generation is None:
            self._generation = Generation.start(self.members, None)
        self._generation.source.weights = self._weights()
        return self._generation

    @property
    def weights_now(self) -> Weights:
        return self._weights()

    def close(self) -> None:
        if self._generation is not None:
            self._generation.close()
            self._generation = None


class RoundSource:
    """A BatchSource: at the first step of a round that it is asked for, the round's demonstrations are collected."""

    def __init__(
        self,
        collect: Callable[[int, int], Sequence[Demonstration] | None],
        *,
        settings: RoundSettings,
        seed: int,
    ) -> None:
        """`collect`: of (round, step within it); None where the run is to stop."""
        self._collect, self._settings, self._seed = collect, settings, seed
        self._round, self._source = -1, None  # type: tuple[int, ShuffledSource[Demonstration] | None]

    def take(self, step: int) -> Sequence[Demonstration] | None:
        settings = self._settings
        number, place = divmod(step, settings.steps)
        if number >= settings.rounds:
            return None
        if self._source is None or number != self._round:
            found = self._collect(number, place)
            if found is None:
                return None
            seed = derive_seed(self._seed, "round", number)
            self._source = ShuffledSource(found, batch_size=settings.batch_size, steps=settings.steps, seed=seed)
            self._round = number
        return self._source.take(place)


class RoundsRun:
    """One run in rounds, from the model that it is given, or that it makes, to the policy of its last step."""

    drive: Literal["collecting"] = "collecting"
    policy_id = POLICY_ID
    is_over = False

    def __init__(self, config: LanguageConfig, directory: Path, settings: RoundSettings, collector: Collector) -> None:
        self._config, self._directory = config, directory.resolve()
        self._settings, self._collector = settings, collector
        engine = config.actors.engine
        if engine.gpu_memory_utilization is None and torch.cuda.is_available():
            engine = engine.model_copy(update={"gpu_memory_utilization": GPU_SHARE})
            config = config.model_copy(update={"actors": config.actors.model_copy(update={"engine": engine})})
        self._members = LanguageFactory(config, self._directory)
        self._hands = Hands(self._members, self._weights)
        self._step = 0

    def preparations(self) -> Iterator[Preparation]:
        self._members.check()
        check_single_turn(self._members)
        yield from self._members.preparations()

    def needs(self) -> Needs:
        settings, policy = self._settings, self._config.policy
        imitates = WarmStartConfig(
            steps=settings.steps, batch_size=settings.batch_size, token_budget=settings.token_budget, lora=policy.lora
        )
        config = self._config.model_copy(update={"policy": policy.model_copy(update={"warm_start": imitates})})
        return supervised_needs(config, self._members.task, self._directory, generates=True)

    @property
    def reward_config(self) -> RewardConfig | None:
        return self._members.reward_config

    def begin_collecting(
        self, reward: RewardEndpoint | None, stop_requested: Callable[[], bool], serve: ServeCritic
    ) -> None:
        given = self._directory / GIVEN
        if self._settings.restart and not given.exists():
            aside = given.with_name(f"{GIVEN}.making")
            aside.mkdir(exist_ok=True)
            self.learner.save(aside, self.learner.weights(epoch=0, version=0))
            aside.replace(given)
        self._hands.begin(reward, stop_requested, serve)

    def close(self) -> None:
        self._hands.close()

    @cached_property
    def source(self) -> RoundSource:
        return RoundSource(self._collected, settings=self._settings, seed=derive_seed(self._config.seed, "batches"))

    @cached_property
    def learner(self) -> Learner:
        config = self._config
        models = language_models(
            self._members.model_directory,
            config.policy,
            SamplingConfig(),
            critic=False,
            reference=False,
            seed=config.seed,
            device=resolve_device(config.learner.device),
        )
        budget = self._settings.token_budget
        return Learner(
            models=models,
            algorithm=SFT(SFTConfig(token_budget=budget)),
            config=config.learner.for_language(),
            policy_id=self.policy_id,
            run_seed=config.seed,
            collator=DemonstrationCollator(policy_layout(models, config.policy, budget)),
            published=("policy",),
            read_out=None if config.policy.lora is None else merged_parameters,
            weights_dtype=trained_dtype(config.policy, config.learner),
            frozen_dtype=frozen_dtype(config.policy),
        )

    @property
    def steps(self) -> int:
        return self._settings.rounds * self._settings.steps

    @property
    def eval_every(self) -> int:
        return self._settings.steps

    def save(self, checkpoint: Path) -> None:
        """The learner's state is all there is; what was collected stands in the run directory."""

    def restore(self, checkpoint: Path) -> None: ...

    def evaluate(self, step: int) -> Mapping[str, Any] | None:
        """Held-out rows, by the engine that also collects."""
        members, config, self._step = self._members, self._config.eval, step
        if not members.eval_episodes:
            return None
        if self._collector.measure is not None:
            return self._measured(self._collector.measure)
        engine = self._hands.generation().engine
        conversations = members.conversations(engine, greedy=config.greedy)
        report = LMEvaluator(engine, conversations, members.task.rows("eval"), config).evaluate(self._weights())
        shown = {"mean": report.mean, "std": report.std, "n": report.n, "unit": report.unit}
        return {**shown, "unparsed": report.unparsed}

    def _measured(self, measure: Measure) -> Mapping[str, Any]:
        answers = self._hands.generation().held_out_answers(self._weights())
        share = sum(measure(prompt, answer) for prompt, answer in answers) / len(answers)
        std = (share * (1 - share)) ** 0.5
        return {"mean": share, "std": std, "n": len(answers), "unit": BROKEN}

    def finish(self, steps_done: int) -> Mapping[str, Any]:
        directories = [self._round(number) for number in range(self._settings.rounds)]
        facts = [dict(self._collector.facts(directory)) for directory in directories if directory.is_dir()]
        return {"rounds": facts, "generated_tokens": sum(fact.get("generated_tokens", 0) for fact in facts)}

    def _round(self, number: int) -> Path:
        return self._directory / ROUNDS / str(number + 1)

    def _weights(self) -> Weights:
        return self.learner.weights(epoch=0, version=self._step)

    def _collected(self, number: int, place: int) -> Sequence[Demonstration] | None:
        self._step = number * self._settings.steps + place
        directory = self._round(number)
        directory.mkdir(parents=True, exist_ok=True)
        found = self._collector.collect(number, directory, self._hands)
        if found is None:
            return None
        if not found:
            raise RollcallError(f"round {number + 1}: there is nothing to imitate: {directory}")
        if self._settings.restart and number > 0 and place == 0:
            self.learner.restore(self._directory / GIVEN)
        return found
