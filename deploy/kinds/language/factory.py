"""How each member of a language run is made from its config. The object travels to the processes that need them; the
model that all of them load is made once, in the run directory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from rollcall.actors.engine import vllm_engine
from rollcall.actors.engine.published_weights import WeightsOffer
from rollcall.actors.engine.settings import EngineConfig
from rollcall.actors.language.conversations import Conversations
from rollcall.actors.language.lm_actor import LMActor
from rollcall.actors.language.lm_evaluation import LMEvaluator
from rollcall.actors.language.text_codec import TextCodec, template_kwargs_of
from rollcall.actors.policy import WeightsSource
from rollcall.actors.tasks.text_task import Task
from rollcall.actors.trajectory_scoring import RewardEndpoint, TextScoring, TrajectoryScorer
from rollcall.cluster.errors import BadInput
from rollcall.cluster.loop.task_source import PromptSource
from rollcall.cluster.messages.weights import Canary, Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config import plugins
from rollcall.deploy.config.answer_checks import check_answers
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.config.recipe.preference_settings import TextPreferencesConfig
from rollcall.deploy.config.recipe.reward_config import RewardConfig
from rollcall.deploy.kinds.kind import POLICY_ID, Preparation, scorer_of
from rollcall.deploy.kinds.language.compared_texts import first_model, training_of
from rollcall.deploy.kinds.language.decided import of_evaluator, with_budget, with_shares
from rollcall.deploy.kinds.language.lengths import check_length, usable_rows
from rollcall.deploy.kinds.language.mixed_in import check_beside, language_collator
from rollcall.deploy.kinds.language.model_directory import write_tiny
from rollcall.deploy.kinds.language.models import language_models
from rollcall.deploy.kinds.language.needs import language_needs
from rollcall.deploy.kinds.language.text_preferences import reward_model_run, served_model
from rollcall.deploy.kinds.language.warm_start import WARM_START, WarmStart, demonstrations_of
from rollcall.deploy.kinds.preference_trainer import CURRENT, PreferenceTraining
from rollcall.deploy.kinds.preferences.reward_model import MODEL
from rollcall.deploy.kinds.raters import labelling_of
from rollcall.deploy.plan.gpus import Shares
from rollcall.deploy.plan.needs import Needs
from rollcall.deploy.preferences.round_book import REWARD_MODELS
from rollcall.deploy.report.counted import TOKENS, Counted
from rollcall.deploy.rundir.files import INIT_FROM, consumption_log
from rollcall.learners.algorithm import with_own_models
from rollcall.learners.collective import Collective
from rollcall.learners.loop.canary import canary
from rollcall.learners.loop.footprint import frozen_dtype, trained_dtype
from rollcall.learners.loop.learner import Learner, resolve_device
from rollcall.learners.models.language.lora import merged_parameters
from rollcall.learners.models.language.token_policy import TokenPolicy, decoder_layers, preload
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.scorer import Taken

_log = logging.getLogger("rollcall")


@dataclass(frozen=True)
class LanguageFactory:
    """Of a run with a text task."""

    config: LanguageConfig
    run_directory: Path
    reward: RewardEndpoint | None = None
    evaluator_utilization: float | None = None  # share of a GPU's memory; None: as an actor's

    drive: ClassVar[Literal["online"]] = "online"
    counts: ClassVar[Counted] = TOKENS
    generates: ClassVar[bool] = True
    scored: ClassVar[Taken] = "text"
    actor_prefix: ClassVar[str] = "lm"
    can_be_exact: ClassVar[bool] = True  # an engine at rest has no state that the next ticket depends on

    @property
    def modules(self) -> Sequence[str]:
        return plugins.modules_of(self.config.task_name, self.config.algorithm_name)

    @property
    def evaluates_at_start(self) -> bool:
        return self.config.eval.at_start

    @property
    def _asking(self) -> TextPreferencesConfig | None:
        """Where raters are asked while the policy learns."""
        preferences = self.config.preferences
        return None if preferences is None or preferences.before_all else preferences

    @property
    def labelling(self) -> LabellingConfig | None:
        return None if self._asking is None else labelling_of(self._asking)

    @property
    def asks_people(self) -> bool:
        return self._asking is not None and "people" in self._asking.raters

    @property
    def trains_on_preferences(self) -> bool:
        return self._asking is not None

    @property
    def label(self) -> str:
        return self.config.task_name

    @property
    def weight_transfer(self) -> Literal["object_store", "nccl", "ipc"]:
        transfer = self.config.actors.engine.weight_transfer
        return "object_store" if transfer == "auto" else transfer

    @property
    def model_directory(self) -> Path:
        """Where the policy of version 0 is: the model as given, or after its warm start."""
        if self.config.policy.warm_start is not None:
            return self.run_directory / WARM_START
        return self.given_model

    @property
    def given_model(self) -> Path:
        name = self.config.policy.model
        if self.config.policy.init_from is not None:
            return self.run_directory / INIT_FROM
        return self.run_directory / "model" if name == "tiny" else Path(name)

    @property
    def _makes_model(self) -> bool:
        return self.config.policy.model == "tiny" and self.config.policy.init_from is None

    @property
    def eval_episodes(self) -> int:
        return min(self.config.eval.num_rows, len(self.task.rows("eval")))

    def check(self) -> None:
        rows = self.task.rows("train")
        check_answers(self.config.reward, rows)
        check_beside(self.config, self.task)
        preferences = self.config.preferences
        if preferences is not None and preferences.file is None and self.task.environment(rows[0]) is not None:
            raise BadInput(
                f"preferences: task {self.label} is a conversation of several turns, and what raters are asked about "
                "first is sampled as single responses, which are not what is scored then: give preferences.file"
            )
        if self.config.eval.num_rows and not self.eval_episodes:
            _log.warning(
                "task %s has no held-out rows, so nothing is evaluated: hold some out (task.num_eval_rows=100, of a "
                "jsonl task), or set eval.num_rows=0",
                self.label,
            )
        if self._makes_model and not hasattr(self.task, "alphabet"):
            raise BadInput(
                f"policy.model = 'tiny': task {self.label} does not say its alphabet, so no character model can be "
                "made for it: name a Hugging Face directory"
            )
        if not self._makes_model:
            self.codec  # noqa: B018 - raises BadInput for a directory without tokenizer, or without chat template
            self._check_length()

    def _check_length(self) -> None:
        check_length(self.config.actors.engine.max_model_len, self.given_model)

    def needs(self) -> Needs:
        return language_needs(self.config, self.task, self.run_directory)

    def preparations(self) -> Iterator[Preparation]:
        """The tiny model, the warm start, and the reward model from preferences."""
        self.make_model()
        if self.config.policy.warm_start is not None and not self.model_directory.exists():
            yield self.warm_start()
        if self._asking is not None:
            first_model(self._reward_models, self.model_directory, members=self._asking.members, seed=self.config.seed)
        elif self.config.preferences is not None and not self._reward_model.exists():
            yield reward_model_run(
                self.config.preferences,
                self.task,
                self.codec,
                self.model_directory,
                self._reward_model.parent,
                sampling=self.config.actors.sampling,
                seed=derive_seed(self.config.seed, "reward"),
            )

    def make_model(self) -> None:
        """The tiny one, unless an earlier process of this run has."""
        if self._makes_model and not self.given_model.exists():
            seed = derive_seed(self.config.seed, "network")
            write_tiny(self.task, self.config.policy.tiny, self.given_model, seed=seed)
            self._check_length()

    def warm_start(self) -> WarmStart:
        policy, seed = self.config.policy, derive_seed(self.config.seed, "warm_start")
        assert policy.warm_start is not None
        num_rows = policy.warm_start.num_rows
        return WarmStart(
            demonstrations=demonstrations_of(self.task, self.codec, self.given_model, num_rows=num_rows, seed=seed),
            given=self.given_model,
            goal=self.run_directory / WARM_START,
            policy=policy,
            optimised=self.config.learner,
            seed=seed,
        )

    @cached_property
    def task(self) -> Task:
        task: Task = self.config.build_task()
        return task

    @cached_property
    def codec(self) -> TextCodec:
        return TextCodec(self.given_model, chat=self.task.chat, template_kwargs=template_kwargs_of(self.task))

    def work(self) -> PromptSource:
        """Prompts that fit; the others are skipped for good, and said."""
        rows = self.usable_rows()
        return PromptSource(rows, run_seed=self.config.seed, samples_per_prompt=self.config.actors.samples_per_prompt)

    def usable_rows(self) -> list[int]:
        """Raises BadInput: when there is none."""
        return usable_rows(self.label, self.task, self.codec, self.config.actors)

    @property
    def reward_config(self) -> RewardConfig | None:
        if self.config.preferences is None:
            return self.config.reward
        longest = self.config.actors.engine.max_model_len
        if self._asking is not None:
            scorer = served_model(self._asking, self._reward_models / CURRENT, longest=longest)
            return RewardConfig(scorer=scorer, patience_s=self._asking.patience_s)
        return RewardConfig(scorer=served_model(self.config.preferences, self._reward_model, longest=longest))

    @property
    def _reward_models(self) -> Path:
        return self.run_directory / REWARD_MODELS

    @property
    def _reward_model(self) -> Path:
        """Where it is made before the run's own processes are."""
        return self._reward_models / "trained" / MODEL

    def with_reward(self, endpoint: RewardEndpoint) -> LanguageFactory:
        return replace(self, reward=endpoint)

    def with_token_budget(self, tokens: int) -> LanguageFactory | None:
        config = with_budget(self.config, tokens)
        return None if config is None else replace(self, config=config)

    def with_gpus(self, shares: Shares) -> LanguageFactory:
        return replace(
            self, config=with_shares(self.config, shares), evaluator_utilization=shares.evaluator_utilization
        )

    @property
    def preference_training(self) -> PreferenceTraining | None:
        if self._asking is None or self.reward is None:
            return None
        return training_of(
            self.config, self.reward, self._reward_models, task=self.task, codec=self.codec, start=self.model_directory
        )

    def scorer(self) -> TrajectoryScorer:
        assert self.reward is not None
        return scorer_of(self.reward, TextScoring(self.task, self.codec, self.task.rows("train")))

    def preload(self, role: Literal["actor", "learner"]) -> None:
        if role == "actor":
            vllm_engine.preload(self.config.actors.engine, threads=self.config.actors.threads)
        else:
            preload()

    @property
    def outside(self) -> None:
        """An engine's work is not given away: it takes weights that an HTTP request has no room for."""

    def actor(self, actor_id: str, source: WeightsSource[Weights | WeightsOffer]) -> LMActor:
        engine = self.engine(self.config.actors.engine)
        return LMActor(
            actor_id=actor_id,
            engine=engine,
            conversations=self.conversations(engine, greedy=False),
            rows=self.task.rows("train"),
            weights_source=source,
        )

    def evaluator(self) -> LMEvaluator:
        # It is handed the weights of the version that it is to judge, which the learner may no longer have.
        engine = self.engine(of_evaluator(self.config.actors.engine, self.evaluator_utilization))
        conversations = self.conversations(engine, greedy=self.config.eval.greedy)
        return LMEvaluator(engine, conversations, self.task.rows("eval"), self.config.eval)

    def models(self) -> dict[str, nn.Module]:
        """policy, and what the algorithm needs beside it."""
        algorithm = self.config.build_algorithm()
        models = language_models(
            self.model_directory,
            self.config.policy,
            self.config.actors.sampling,
            critic=algorithm.needs.critic,
            reference=algorithm.needs.reference,
            seed=self.config.seed,
            device=resolve_device(self.config.learner.device),
        )
        return with_own_models(algorithm, models)

    def learner(self, collective: Collective) -> Learner:
        config, models = self.config, self.models()
        return Learner(
            models=models,
            algorithm=config.build_algorithm(),
            config=config.learner.for_language(),
            policy_id=POLICY_ID,
            run_seed=config.seed,
            collator=language_collator(config, models, self.task, self.codec, self.given_model),
            published=("policy",),
            consumption_log=consumption_log(self.run_directory),
            collective=collective,
            fsdp_units=decoder_layers,
            read_out=None if config.policy.lora is None else merged_parameters,
            keep_on_device=self.weight_transfer != "object_store",
            canary=self._canary,
            published_dtype=config.actors.engine.resolved(on_gpu=torch.cuda.is_available()).dtype,
            weights_dtype=trained_dtype(config.policy, config.learner),
            frozen_dtype=frozen_dtype(config.policy),
        )

    def _canary(self, models: Mapping[str, nn.Module]) -> Canary:
        """What goes out with each version of the weights, for engines to see that they have them rightly."""
        policy = models["policy"]
        assert isinstance(policy, TokenPolicy)
        return canary(policy, room=self.config.actors.engine.max_model_len, dtype=self.config.policy.dtype)

    def engine(self, config: EngineConfig) -> vllm_engine.VllmEngine:
        actors = self.config.actors
        torch.set_num_threads(actors.threads)
        return vllm_engine.VllmEngine(
            self.model_directory,
            config,
            sampling=actors.sampling,
            stop_token_ids=[self.codec.eos_token_id],
            threads=actors.threads,
        )

    def conversations(self, engine: vllm_engine.VllmEngine, *, greedy: bool) -> Conversations:
        return Conversations(
            engine, self.task, self.codec, max_tokens=self.config.actors.sampling.max_tokens, greedy=greedy
        )
