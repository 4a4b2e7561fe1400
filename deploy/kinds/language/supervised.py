"""Supervised fine-tuning: a language model imitates a task's demonstrations, and is judged before and after on held-out
rows. What a language recipe calls its warm start, as a run of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TextIO

import torch

from rollcall.cluster.messages.records import Weights
from rollcall.cluster.messages.reports import EvalReport
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.deploy.config.checks import Problem
from rollcall.deploy.config.language_checks import check_supervised
from rollcall.deploy.config.language_config import SupervisedConfig
from rollcall.deploy.config.settings import Settings
from rollcall.deploy.config.validation import validated
from rollcall.deploy.kinds.kind import POLICY_ID, Preparation, StoredRun
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.language_kind import LANGUAGE, RENAMED
from rollcall.deploy.kinds.language.policy import LoadedLanguage
from rollcall.deploy.kinds.language.warm_start import WARM_START, WarmStart
from rollcall.deploy.report.closing import eval_line, evaluated, report_line, steps_line
from rollcall.deploy.report.counted import IMITATED
from rollcall.deploy.report.offline_progress import ProgressLines
from rollcall.deploy.report.recorders import Recorder
from rollcall.learners.algorithms.language.sft import SFT
from rollcall.learners.data.demonstrations import DemonstrationSource
from rollcall.learners.loop.flat import module_weights
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.token_policy import TokenPolicy, load_policy_model


class SupervisedRun:
    """One run, from a task's demonstrations to a model in Hugging Face's format."""

    drive: Literal["offline"] = "offline"
    policy_id = WARM_START
    is_over = False

    def __init__(self, config: SupervisedConfig, run_directory: Path) -> None:
        self._config = config
        self._directory = run_directory
        self._members = LanguageFactory(config, run_directory)

    def preparations(self) -> Iterator[Preparation]:
        self._members.check()
        self._members.make_model()
        yield from ()

    @cached_property
    def _imitation(self) -> WarmStart:
        return self._members.warm_start()

    @property
    def learner(self) -> Learner:
        return self._imitation.learner

    @property
    def source(self) -> DemonstrationSource:
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


class SupervisedKind:
    """A recipe with a task and the algorithm sft."""

    name = "supervised"
    algorithm = SFT.name
    config = SupervisedConfig
    counts = IMITATED
    data = "demonstrations"
    policy = LANGUAGE.policy
    exports = False
    renamed = RENAMED

    def claims(self, tree: Mapping[str, Any]) -> bool:
        algorithm = tree.get("algorithm")
        return LANGUAGE.claims(tree) and isinstance(algorithm, Mapping) and algorithm.get("name") == self.algorithm

    def read(self, settings: Settings) -> SupervisedConfig:
        return validated(settings, SupervisedConfig)

    def problems(self, config: SupervisedConfig) -> list[Problem]:
        return check_supervised(config)

    def fits(self, algorithm: type[Any]) -> bool:
        return False  # sft is the only one, and no choice

    def elsewhere(self, run_directory: Path) -> str:
        return LANGUAGE.elsewhere(run_directory)

    def misfit(self, config: SupervisedConfig, loaded: LoadedLanguage) -> str:
        return LANGUAGE.misfit(config, loaded)

    def load(self, run: StoredRun) -> LoadedLanguage:
        """The weights are those of the fine-tuned model: beside the one that was given, there is no other."""
        policy = run.config.policy.model_copy(update={"warm_start": None})
        loaded = LoadedLanguage.of(run)
        return replace(loaded, config=run.config.model_copy(update={"policy": policy}))

    def make(self, config: SupervisedConfig, run_directory: Path) -> SupervisedRun:
        return SupervisedRun(config, run_directory)

    def console(self, stream: TextIO, *, live: bool) -> Recorder:
        return ProgressLines(stream)

    def closing_lines(self, summary: Mapping[str, Any], run_directory: Path) -> list[str]:
        lines = [steps_line(summary)]
        for name, text in (("first_eval", "before"), ("final_eval", "after")):
            lines += evaluated(text, summary.get(name))
        model = summary["model_directory"]
        lines += [report_line(run_directory), f"model: {model or 'none was written'}"]
        if model:
            lines.append(f"learn on from it with: policy.model={model} policy.warm_start=null")
        return lines

    def eval_line(self, result: Mapping[str, Any]) -> str:
        return eval_line(result)


SUPERVISED = SupervisedKind()
