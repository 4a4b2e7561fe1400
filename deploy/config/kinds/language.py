"""Settings of a language run that contradict each other, as they show without torch or vLLM."""

from __future__ import annotations

from collections.abc import Mapping

from rollcall.deploy.config import plugins
from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.kinds.control import check_lag
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.language_config import LanguageConfig, SupervisedConfig
from rollcall.deploy.config.settings import KeyPath

RENAMED: Mapping[KeyPath, KeyPath] = {("eval", "episodes"): ("eval", "num_rows")}


def check_settings(config: LanguageConfig) -> list[Problem]:
    """Contradictions that show without a model."""
    if not plugins.is_language(config.declared):
        known = {name: plugins.declared(plugins.ALGORITHM, name) for name in plugins.shipped(plugins.ALGORITHM)}
        able = ", ".join(name for name, found in known.items() if plugins.is_language(found))
        return [Problem(("algorithm", "name"), f"learns control, not language: use one of {able}")]
    return [*_length(config), *_model(config), *check_lag(config), *_context(config), *_weight_transfer(config)]


def check_supervised(config: SupervisedConfig) -> list[Problem]:
    """As check_settings, of a run that imitates and does not act."""
    if config.policy.warm_start is None:
        text = "nothing to imitate is asked for: give policy.warm_start.steps=400, or a recipe with a warm start"
        return [Problem(("policy", "warm_start"), text)]
    return [*_model(config), *_context(config)]


def check_collecting(config: LanguageConfig) -> list[Problem]:
    """As check_settings, of a run in one process that imitates what it makes."""
    problems = [*_model(config), *_context(config)]
    if config.learner.num_processes > 1:
        problems.append(Problem(("learner", "num_processes"), "such a run has one process, with its engine: use 1"))
    if config.total_learner_steps is not None:
        problems.append(Problem(("total_learner_steps",), "the run's rounds say how long it is (algorithm.rounds)"))
    return problems


def _length(config: LanguageConfig) -> list[Problem]:
    if config.total_learner_steps is None:
        return [Problem(("total_learner_steps",), "the run has no end: say after how many batches it ends")]
    return []


def _model(config: LanguageConfig) -> list[Problem]:
    if config.policy.init_from is None or config.policy.model == "tiny":
        return []
    return [Problem(("policy", "model"), "policy.init_from gives the model: leave one of the two out")]


def _context(config: LanguageConfig) -> list[Problem]:
    engine, sampling = config.actors.engine, config.actors.sampling
    if sampling.max_tokens < engine.max_model_len:
        return []
    text = f"no room for a prompt in actors.engine.max_model_len={engine.max_model_len}: lower it, or raise that"
    return [Problem(("actors", "sampling", "max_tokens"), text)]


def _weight_transfer(config: LanguageConfig) -> list[Problem]:
    """What the ways from GPU to GPU need. Whether there are GPUs, the processes themselves find out, on their nodes."""
    transfer = config.actors.engine.weight_transfer
    if transfer in ("object_store", "auto"):
        return []
    path = ("actors", "engine", "weight_transfer")
    if config.runtime == "serial":
        return [Problem(path, "runtime=serial has one process, in which learner and engine are: use object_store")]
    if config.learner.device == "cpu":
        return [Problem(path, "sends from GPU to GPU, and learner.device=cpu: use object_store, or a GPU")]
    if transfer == "ipc" and config.learner.num_processes > 1:
        return [Problem(path, "is between two processes on one GPU: use nccl with several learner.num_processes")]
    return []


SETTINGS = KindSettings(
    name="language", config=LanguageConfig, problems=check_settings, fits=plugins.is_language, renamed=RENAMED
)
