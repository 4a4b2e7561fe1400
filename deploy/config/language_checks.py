"""What no component of a language run can check alone. As checks.py for the control half."""

from __future__ import annotations

from importlib.util import find_spec

from rollcall.actors.engine.settings import check_installed
from rollcall.deploy.config import plugins
from rollcall.deploy.config.checks import Problem, check_device, check_lag
from rollcall.deploy.config.language_config import LanguageConfig, SupervisedConfig
from rollcall.deploy.config.settings import KeyPath
from rollcall.learners.loop.footprint import trained_dtype
from rollcall.learners.models.lora import LoraConfig


def check_language(config: LanguageConfig) -> list[Problem]:
    """Contradictions between settings, and what this machine lacks.

    Raises:
      BadInput: when vLLM is missing, or of an unknown version.
    """
    if not plugins.is_language(config.algorithm_class):
        known = {name: plugins.find(plugins.ALGORITHM, name) for name in plugins.shipped(plugins.ALGORITHM)}
        able = ", ".join(name for name, found in known.items() if plugins.is_language(found))
        return [Problem(("algorithm", "name"), f"learns control, not language: use one of {able}")]
    check_installed()
    problems = [
        *_length(config),
        *_model(config),
        *check_lag(config),
        *_context(config),
        *_algorithm(config),
        *_learner(config),
    ]
    return [*problems, *_weight_transfer(config)] or check_device(config)


def check_supervised(config: SupervisedConfig) -> list[Problem]:
    """As check_language, of a run that imitates and does not act.

    Raises:
      BadInput: when vLLM is missing, or of an unknown version.
    """
    check_installed()
    if config.policy.warm_start is None:
        text = "nothing to imitate is asked for: give policy.warm_start.steps=400, or a recipe with a warm start"
        return [Problem(("policy", "warm_start"), text)]
    return [*_model(config), *_context(config), *_learner(config)] or check_device(config)


def check_collecting(config: LanguageConfig) -> list[Problem]:
    """As check_language, of a run in one process that imitates what it makes.

    Raises:
      BadInput: when vLLM is missing, or of an unknown version.
    """
    check_installed()
    problems = [*_model(config), *_context(config), *_learner(config)]
    if config.learner.num_processes > 1:
        problems.append(Problem(("learner", "num_processes"), "such a run has one process, with its engine: use 1"))
    if config.total_learner_steps is not None:
        problems.append(Problem(("total_learner_steps",), "the run's rounds say how long it is (algorithm.rounds)"))
    return problems or check_device(config)


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
