"""Supervised fine-tuning: a language model imitates a task's demonstrations, and is judged before and after on held-out
rows. What a language recipe calls its warm start, as a run of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from rollcall.cluster.messages.reports import EvalReport
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.config.kinds.supervised import SETTINGS
from rollcall.deploy.config.language_checks import check_imitating
from rollcall.deploy.config.recipe.language_config import SupervisedConfig
from rollcall.deploy.kinds.kind import POLICY_ID, Preparation, RunKind, StoredRun
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.language_kind import elsewhere
from rollcall.deploy.kinds.language.needs import supervised_needs
from rollcall.deploy.kinds.language.policy import LoadedLanguage, misfit_of
from rollcall.deploy.kinds.language.warm_start import WARM_START, WarmStart
from rollcall.deploy.plan.needs import Needs
from rollcall.deploy.report.closing import eval_line, evaluated, report_line, steps_line
from rollcall.deploy.report.counted import IMITATED
from rollcall.deploy.report.offline_progress import ProgressLines
from rollcall.learners.collective import Collective
from rollcall.learners.data.demonstrations import Demonstration
from rollcall.learners.data.source import ShuffledSource
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.flat import module_weights
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model

_log = logging.getLogger("rollcall")


class SupervisedRun:
    """One run, from a task's demonstrations to a model in Hugging Face's format."""

    drive: Literal["offline"] = "offline"
    policy_id = WARM_START
    is_over = False

    def __init__(self, config: SupervisedConfig, run_directory: Path) -> None:
        self._config = config
        self._directory = run_directory
        self._members = LanguageFactory(config, run_directory)
        self._collective = Collective()

    @property
    def num_processes(self) -> int:
        return self._config.learner_processes

    def share(self, collective: Collective) -> None:
        self._collective = collective

    def preparations(self) -> Iterator[Preparation]:
        self._members.check()
        policy = self._config.policy
        if policy.lora is not None and policy.warm_start is not None and policy.warm_start.lora is None:
            _log.warning(
                "policy.lora is for the run that begins with this model: here all of it is trained; adapters are "
                "policy.warm_start.lora.rank=%d",
                policy.lora.rank,
            )
        self._members.make_model()
        yield from ()

    def needs(self) -> Needs:
        return supervised_needs(self._config, self._members.task, self._directory)

    @cached_property
    def _imitation(self) -> WarmStart:
        return replace(self._members.warm_start(), collective=self._collective)

    @property
    def learner(self) -> Learner:
        return self._imitation.learner

    @property
    def source(self) -> ShuffledSource[Demonstration]:
        return self._imitation.source

    @property
    def steps(self) -> int:
        return self._imitation.steps

    @property
    def eval_every(self) -> int:
        return self.steps

    def save(self, checkpoint: Path) -> None:
        """The learner's state is all there is."""

    def restore(self, checkpoint: Path) -> None: ...

    def evaluate(self, step: int) -> None:
        """Not while it trains: the engine need not share a GPU's memory with the trainer."""

    def finish(self, steps_done: int) -> Mapping[str, Any]:
        found: dict[str, Any] = {"model_directory": None}
        if steps_done == self.steps:
            self._imitation.finish(steps_done)
            if self._collective.rank:
                return found
            found["model_directory"] = str(self._directory / WARM_START)
            found["first_eval"], found["final_eval"] = map(_shown, self._evaluated())
        return found

    def _evaluated(self) -> tuple[EvalReport | None, EvalReport | None]:
        """The model as it was given and after its fine-tuning, on the held-out rows, by one engine."""
        members = self._members
        rows = members.eval_episodes
        if rows == 0:
            return None, None
        print(f"answering {rows} held-out rows, before and after", flush=True)
        torch.cuda.empty_cache()
        policy = self._config.policy.model_copy(update={"warm_start": None})
        as_given = self._config.model_copy(update={"policy": policy})
        evaluator = replace(members, config=as_given).evaluator()
        try:
            first = evaluator.evaluate(self._weights_of(members.given_model, version=0))
            return first, evaluator.evaluate(self._weights_of(members.model_directory, version=1))
        finally:
            evaluator.close()

    def _weights_of(self, directory: Path, *, version: int) -> Weights:
        """A model directory's tensors, called as the learner calls those that it publishes."""
        model = TokenPolicy(load_policy_model(directory, self._config.policy), SamplingConfig())
        return module_weights({"policy": model}, POLICY_ID, epoch=0, version=version)


def _shown(result: EvalReport | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {"mean": result.mean, "std": result.std, "n": result.n, "unit": result.unit, "unparsed": result.unparsed}


def _load(run: StoredRun) -> LoadedLanguage:
    """The weights are those of the fine-tuned model: beside the one that was given, there is no other."""
    warm_start, policy = run.config.policy.warm_start, run.config.policy.model_copy(update={"warm_start": None})
    lora = None if warm_start is None else warm_start.lora
    return replace(LoadedLanguage.of(run), config=run.config.model_copy(update={"policy": policy}), lora=lora)


def _closing_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    lines = [steps_line(summary)]
    for name, text in (("first_eval", "before"), ("final_eval", "after")):
        lines += evaluated(text, summary.get(name))
    model = summary["model_directory"]
    lines += [report_line(run_directory), f"model: {model or 'none was written'}"]
    return [*lines, f"learn on from it with: policy.model={model} policy.warm_start=null"] if model else lines


SUPERVISED = RunKind(
    settings=SETTINGS,
    counts=IMITATED,
    make=SupervisedRun,
    load=_load,
    elsewhere=elsewhere,
    closing_lines=_closing_lines,
    console=ProgressLines,
    unfit=check_imitating,
    eval_line=eval_line,
    data="demonstrations",
    policy="language model",
    exportable=True,
    misfit=misfit_of,
)
