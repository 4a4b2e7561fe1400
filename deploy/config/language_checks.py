"""What no component of a language run can check alone, where it takes torch, vLLM or the machine to see. As checks.py
for the control half."""

from __future__ import annotations

from importlib.util import find_spec

from rollcall.actors.engine.settings import check_installed
from rollcall.deploy.config.checks import check_device
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.config.settings import KeyPath
from rollcall.learners.loop.footprint import trained_dtype
from rollcall.learners.models.language.lora_config import LoraConfig


def check_language(config: LanguageConfig) -> list[Problem]:
    """Whether algorithm, learner and machine can do what the settings ask for.

    Raises:
      BadInput: when vLLM is missing, or of an unknown version.
    """
    check_installed()
    return [*_algorithm(config), *_learner(config)] or check_device(config)


def check_imitating(config: LanguageConfig) -> list[Problem]:
    """As check_language, of a run that imitates.

    Raises:
      BadInput: when vLLM is missing, or of an unknown version.
    """
    check_installed()
    return _learner(config) or check_device(config)


def _algorithm(config: LanguageConfig) -> list[Problem]:
    problems = []
    try:
        least = int(config.build_algorithm().needs.min_group_size)
    except ValueError as error:
        return [Problem(("algorithm", "name"), str(error))]
    if config.actors.samples_per_prompt < least:
        text = f"{config.algorithm_name} compares samples of one prompt with each other: {least} at the least"
        problems.append(Problem(("actors", "samples_per_prompt"), text))
    samples = config.actors.prompts_per_batch * config.actors.samples_per_prompt
    share = samples // max(1, int(getattr(config.algorithm, "num_minibatches", 1)))
    if config.learner.num_processes > share:
        text = f"more learner processes than the {share} samples of a minibatch to share: {share} at the most"
        problems.append(Problem(("learner", "num_processes"), text))
    shown = int(getattr(config.algorithm, "ptx_batch_size", 0)) // int(getattr(config.algorithm, "num_minibatches", 1))
    if getattr(config.algorithm, "ptx_coef", 0) and config.learner.num_processes > shown:
        text = f"every one of {config.learner.num_processes} learner processes needs some in each minibatch: raise it"
        problems.append(Problem(("algorithm", "ptx_batch_size"), text))
    return problems


def _learner(config: LanguageConfig) -> list[Problem]:
    problems, policy = [], config.policy
    with_lora: dict[KeyPath, LoraConfig | None] = {("policy", "lora"): policy.lora}
    if policy.warm_start is not None:
        with_lora["policy", "warm_start", "lora"] = policy.warm_start.lora
    if config.preferences is not None:
        with_lora["preferences", "lora"] = config.preferences.lora
    if find_spec("peft") is None:
        text = "LoRA needs the package peft: pip install peft, or set null"
        problems += [Problem(path, text) for path, lora in with_lora.items() if lora is not None]
    if (
        policy.weights_dtype == "bfloat16"
        and policy.lora is None
        and trained_dtype(policy, config.learner) == "float32"
    ):
        text = "those are stepped by Adam alone: use learner.optimizer=adam or adamw, or float32"
        problems.append(Problem(("policy", "weights_dtype"), text))
    if config.learner.sharding == "fsdp" and (config.learner.num_processes == 1 or config.runtime == "serial"):
        alone = "runtime=serial has" if config.runtime == "serial" else "there is"
        text = f"{alone} one learner process, with nobody to share with: use auto, or more learner.num_processes"
        problems.append(Problem(("learner", "sharding"), text))
    return problems
