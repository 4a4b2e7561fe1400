"""The direct methods as runs: a policy from a file of comparisons, a frozen reference beside it, judged by its implicit
rewards on held-out comparisons. Knows the order of events; the losses are dpo.py's, ipo.py's and group_dpo.py's."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config import plugins
from rollcall.deploy.config.preference_config import DirectRunConfig
from rollcall.deploy.drive import offline
from rollcall.deploy.kinds.export import save_policy
from rollcall.deploy.kinds.parts import POLICY_ID
from rollcall.deploy.kinds.warm_start import imitate
from rollcall.deploy.preferences.accuracy import accuracy_of
from rollcall.deploy.preferences.data import counted, encode_texts, load_preferences
from rollcall.deploy.preferences.implicit_rewards import PolicyJudgement, judge_policy, sampled_kl
from rollcall.deploy.preferences.text_models import given_model
from rollcall.deploy.rundir.earlier_runs import run_hash
from rollcall.learners.batches.preference_experience import PreferenceExperience
from rollcall.learners.data.comparisons import PreferenceSource, RankedCandidates, TokenSequence
from rollcall.learners.data.demonstrations import Demonstration
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.lora import WithoutAdapters, add_adapters, merged_parameters
from rollcall.learners.models.token_policy import TokenPolicy, autocast_dtype, load_policy_model
from rollcall.reward_service.models.text_encoder import TextEncoder

POLICY = "policy"  # of the run directory: what it ends with, in Hugging Face's format


class DirectJob:
    """One run of a direct method, from its data to its policy's directory."""

    policy_id = POLICY_ID
    num_evaluations = 5
    is_over = False  # before its last step: what is kept is the policy of the last one

    def __init__(self, config: DirectRunConfig, directory: Path) -> None:
        """Raises BadInput: when the data cannot be learnt from, or there is no model to begin with."""
        self._config = config
        self._directory = directory
        self._found = load_preferences(config.data, directory, seed=config.seed)
        if not self._found.is_text:
            raise BadInput(f"{self._found.train[0].source}: segments: a language model learns from texts alone")
        self.groups = self._groups()
        made, seed = directory / "start", derive_seed(config.seed, "network")
        given = given_model(
            config.policy.model, config.policy.tiny, self._found.train, made, max_tokens=config.max_tokens, seed=seed
        )
        encoder = TextEncoder(given)
        settings: dict[str, Any] = {"max_tokens": config.max_tokens, "groups": self.groups, "for_policy": True}
        self._train = encode_texts(self._found.train, encoder, **settings)
        self._held_out = encode_texts(self._found.held_out, encoder, **settings)
        self._begin = self._warm_started(given)
        self.steps = config.steps(len(self._train))
        self.algorithm = self._algorithm()
        self._models = self._load_models()
        self.source = PreferenceSource(
            self._train,
            batch_size=config.batch_size,
            steps=self.steps,
            seed=derive_seed(config.seed, "batches"),
            groups_in_turn=getattr(config.algorithm, "draw", "by_size") == "evenly",
        )
        self.learner = Learner(
            models={**self._models, **self.algorithm.extra_models()},
            algorithm=self.algorithm,
            config=config.learner.for_language(),
            policy_id=self.policy_id,
            run_seed=config.seed,
            experience=PreferenceExperience(budget=self.budget),
            published=("policy",),
            read_out=None if config.policy.lora is None else merged_parameters,
        )

    @property
    def budget(self) -> int:
        return int(getattr(self._config.algorithm, "budget", 16384))

    def save(self, checkpoint: Path) -> None:
        """The learner's state is all there is."""

    def restore(self, checkpoint: Path) -> None: ...

    def evaluate(self, step: int) -> Mapping[str, Any]:
        judged = self._judge(self._held_out)
        record = _record(judged, self.groups)
        if self._config.kl_prompts:
            record |= sampled_kl(
                self._models,
                self._held_out[: self._config.kl_prompts],
                max_tokens=self._config.kl_max_tokens,
                budget=self.budget,
                seed=derive_seed(self._config.seed, "kl", step),
            )
        return record

    def finish(self) -> Mapping[str, Any]:
        judged, train = self._judge(self._held_out), self._judge(self._train)
        weights = self.learner.weights(epoch=0, version=self.steps)
        goal = self._directory / POLICY
        marker: dict[str, object] = {"config_hash": run_hash(self._directory), "policy_id": self.policy_id}
        save_policy(weights, self._begin, goal, marker=marker)
        return {
            "held_out": _record(judged, self.groups),
            "train": _record(train, self.groups),
            "comparisons": dict(counted(self._train, self._held_out, self._found)),
            "groups": dict(Counter(self.groups[item.group] for item in self._train)) if self.groups else None,
            "policy": str(goal),
        }

    def _groups(self) -> tuple[str, ...]:
        """Of a method that learns by groups, or where every comparison has one to report by."""
        groups = self._found.groups()
        everywhere = all(item.group is not None for item in [*self._found.train, *self._found.held_out])
        if self._config.algorithm_name == "group_dpo":
            if len(groups) < 2:
                have = "there is one" if groups else "there is none"
                raise BadInput(
                    f"{self._found.sources[0]}: group_dpo needs two groups or more ('group' in each line), and {have}: "
                    "use dpo"
                )
            return groups
        return groups if everywhere and len(groups) > 1 else ()

    def _algorithm(self) -> Any:
        config = self._config
        found = plugins.find(plugins.DIRECT_METHOD, config.algorithm_name)
        if config.algorithm_name != "group_dpo":
            return found(config.algorithm)
        sizes = Counter(item.group for item in self._train)
        empty = [name for number, name in enumerate(self.groups) if not sizes[number]]
        if empty:
            raise BadInput(f"group {empty[0]!r}: no comparison is left of it (max_tokens={config.max_tokens})")
        return found(config.algorithm, group_sizes=[sizes[number] for number in range(len(self.groups))])

    def _warm_started(self, given: Path) -> Path:
        """The directory of policy and reference at the beginning."""
        config, goal = self._config, self._directory / "warm_start"
        if config.policy.warm_start is None:
            return given
        if not goal.exists():
            shown = [c for item in self._train for c in _imitated(item, best_only=config.imitate == "chosen")]
            seed = derive_seed(config.seed, "warm_start")
            imitate(shown[: config.policy.warm_start.num_rows], given, goal, config.policy, config.learner, seed=seed)
        return goal

    def _load_models(self) -> dict[str, nn.Module]:
        policy = self._config.policy
        autocast, sampling = autocast_dtype(policy), SamplingConfig()

        def load(name: str) -> nn.Module:
            model = load_policy_model(self._begin, policy)
            if policy.lora is not None:
                add_adapters(model, policy.lora, seed=derive_seed(self._config.seed, "lora", name))
            return model

        learnt = TokenPolicy(load("policy"), sampling, autocast=autocast)
        if policy.lora is not None:
            return {"policy": learnt, "reference": WithoutAdapters(learnt)}
        reference = TokenPolicy(load("reference"), sampling, autocast=autocast).requires_grad_(False)
        return {"policy": learnt, "reference": reference}

    def _judge(self, comparisons: Sequence[RankedCandidates[TokenSequence]]) -> PolicyJudgement:
        return judge_policy(self.algorithm, self._models, comparisons, budget=self.budget)


def _imitated(item: RankedCandidates[TokenSequence], *, best_only: bool) -> list[Demonstration]:
    chosen = [c for c, rank in zip(item.candidates, item.ranks, strict=True) if rank == 0 or not best_only]
    return [Demonstration(c.token_ids, np.arange(len(c.token_ids)) >= c.num_prompt) for c in chosen]


def _record(judged: PolicyJudgement, groups: Sequence[str]) -> dict[str, Any]:
    """An evaluation's record; of groups, each one's own and the worst."""
    if not len(judged.differences):
        return {"mean": None, "std": None, "n": 0, "unit": "pairs right", "eval_loss": judged.loss}
    found = accuracy_of(judged.differences.tolist())
    std = (found.accuracy * (1 - found.accuracy)) ** 0.5
    record: dict[str, Any] = {"mean": found.accuracy, "std": std, "n": found.n, "low": found.low, "high": found.high}
    record |= {"unit": "pairs right", "eval_loss": judged.loss, "margin": judged.margin}
    own: dict[str, Any] = {}
    for number, name in enumerate(groups):
        theirs = judged.differences[judged.groups == number]
        if len(theirs):
            loss = float(judged.losses[judged.groups == number].mean())
            own[name] = {**accuracy_of(theirs.tolist()).as_dict(), "loss": loss}
    if own:
        record |= {"groups": own, "worst_group_accuracy": min(value["accuracy"] for value in own.values())}
        record |= {"worst_group_loss": max(value["loss"] for value in own.values())}
    return record


def carry_out(
    config: DirectRunConfig, directory: Path, *, resume: bool = False, stop: threading.Event | None = None, **more: Any
) -> dict[str, Any]:
    """As offline.carry_out."""
    build = partial(DirectJob, config, directory)
    return offline.carry_out(config, directory, build, resume=resume, stop=stop or threading.Event(), **more)
