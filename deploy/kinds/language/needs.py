"""What a language run needs of memory, from its settings: the model's architecture, without its weights, and how many
tokens go through learner and engine at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rollcall.actors.tasks.text_task import Task, all_shown
from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.config.recipe.reward_config import RewardConfig
from rollcall.deploy.kinds.language.asking_needs import trainer_roles
from rollcall.deploy.plan import memory
from rollcall.deploy.plan.memory import Step
from rollcall.deploy.plan.model_size import ModelSize, size_of_directory, size_of_tiny
from rollcall.deploy.plan.needs import GIB, Engines, Needs, Part, Role, counted, parts
from rollcall.deploy.rundir.directories import find_checkpoint
from rollcall.deploy.rundir.files import INIT_FROM, POLICY
from rollcall.learners.algorithms.language.token_settings import TOKEN_BUDGET
from rollcall.learners.loop import footprint
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.workspace import Workspace, memory_bytes, workspace_bytes
from rollcall.reward_service.models.reward_model_config import RewardModelConfig

SPECIAL_TOKENS = 3  # of a tiny model beside its task's characters
ROWS_LOOKED_AT = 200  # of a task, for the length of its prompts
CHARACTERS_PER_TOKEN = 3  # of a model that has seen language, at the least; of a tiny one: 1
TRAJECTORY_BYTES_PER_TOKEN = 40  # token, log-probability, entropy, version, mask, and room
KEPT_VERSIONS_OF_TRAJECTORIES = 3  # batches: one learnt from, one waiting, one being made
PREFILL_TOKENS = 8192  # an engine's, of one step
CPU = torch.device("cpu")


def language_needs(config: LanguageConfig, task: Task, run_directory: Path) -> Needs:
    """Of a run with actors."""
    size, work = model_of(config, task, run_directory), _Work.of(config, task)
    on_ray = config.runtime == "ray"
    engine = config.actors.engine
    engines = _engines(config, size)
    learner = learner_of(
        config.policy,
        config.learner,
        size,
        step=step_of(size, config.policy, tokens=work.tokens, predicted=work.predicted),
        critic=config.build_algorithm().needs.critic,
        reference=config.build_algorithm().needs.reference,
        base=memory.LANGUAGE_LEARNER,
        copy_on_device=engine.weight_transfer in ("nccl", "ipc"),
        shrink="algorithm.token_budget, policy.gradient_checkpointing, policy.dtype=bfloat16",
    )

    def generates(num_seqs: int) -> tuple[Part, ...]:
        """Of an engine that has so many sequences to work on at a time."""
        return memory.engine_parts(
            base=memory.ENGINE,
            weights_bytes=size.num_parameters * _engine_size(config),
            cache_bytes=engine.kv_cache_gib * GIB,
            workspace_bytes=_engine_workspace(config, size, min(num_seqs, engine.max_num_seqs), _engine_size(config)),
            gpu_workspace_bytes=engines.workspace_bytes,
            cache_setting="actors.engine.kv_cache_gib",
        )

    found = [
        Role("learner process", learner, config.learner.num_processes, "learner"),
        Role("actor", generates(engines.wanted), config.actors.num, "actor"),
    ]
    if config.eval.num_rows and task.rows("eval"):
        found.append(Role("evaluator", generates(config.eval.num_rows), 1, "evaluator"))
    found += [*_beside(config), *trainer_roles(config.preferences, size, longest=engine.max_model_len)]
    if on_ray:
        found.append(
            Role("Ray and parameter server", (Part("programs", memory.RAY + memory.PARAMETER_SERVER, host=True),))
        )
    published = size.num_parameters * footprint.SIZE[published_dtype(config)]
    models_made = 1 + (config.policy.model == "tiny") + (config.policy.warm_start is not None)
    found.append(Role("driver", driver_of(config, task, size)))
    return Needs(
        model=f"{size.name}, {counted(size.num_parameters)} parameters",
        roles=tuple(found) if on_ray else (memory.together(found),),
        published_bytes=published,
        trajectories_bytes=KEPT_VERSIONS_OF_TRAJECTORIES * work.batch_tokens * TRAJECTORY_BYTES_PER_TOKEN,
        checkpoint_bytes=checkpoint_bytes(config.policy, config.learner, size, config.build_algorithm().needs.critic),
        checkpoints_kept=config.checkpoint.keep,
        begins_bytes=4 * size.num_parameters * models_made,
        on_ray=on_ray,
        engines=engines,
        tokens=work.tokens,
    )


def supervised_needs(config: LanguageConfig, task: Task, run_directory: Path, *, generates: bool = False) -> Needs:
    """Of a run that imitates, and answers held-out rows. `generates`: and makes what it imitates."""
    size = model_of(config, task, run_directory)
    program, learner = Part("program", memory.LANGUAGE_LEARNER, host=True), _warm_start_parts(config, task, size)
    answers: tuple[Part, ...] = ()
    if generates or (config.eval.num_rows and task.rows("eval")):
        engine = memory.ENGINE - memory.LANGUAGE_LEARNER
        answers = parts(
            Part("engine", max(engine, 0), host=True),
            Part("engine's weights", size.num_parameters * _engine_size(config), "actors.engine.dtype=bfloat16"),
            Part("KV cache", config.actors.engine.kv_cache_gib * GIB, "actors.engine.kv_cache_gib, eval.num_rows=0"),
        )
    trainer = Role("trainer", (program, *learner, *answers), config.learner_processes, "learner")
    return Needs(
        model=f"{size.name}, {counted(size.num_parameters)} parameters",
        roles=(trainer, *(_beside(config) if generates else ())),
        checkpoint_bytes=checkpoint_bytes(config.policy, config.learner, size, critic=False),
        checkpoints_kept=config.checkpoint.keep,
        begins_bytes=8 * size.num_parameters,
        on_ray=False,
    )


def model_of(config: LanguageConfig, task: Task, run_directory: Path) -> ModelSize:
    """The architecture that a run would load, as far as it can be known before it is made.

    Raises:
      BadInput: when there is no such model, or no such run to begin from.
    """
    policy = config.policy
    if policy.init_from is not None:
        return size_of_directory(_beginning(policy.init_from, run_directory))
    if policy.model != "tiny":
        return size_of_directory(policy.model)
    settings = dict(policy.tiny)
    pieces = settings.pop("vocab_size", None)
    if pieces is None and not hasattr(task, "alphabet"):
        raise BadInput(f"policy.model = 'tiny': task {config.task_name} does not say its alphabet")
    alphabet = "" if pieces is not None else task.alphabet()  # type: ignore[attr-defined]
    return tiny_size(settings, int(pieces) if pieces is not None else len(set(alphabet)) + SPECIAL_TOKENS)


def tiny_size(settings: dict[str, Any], vocab_size: int) -> ModelSize:
    try:
        return size_of_tiny(settings, vocab_size)
    except (TypeError, ValueError) as error:
        raise BadInput(f"tiny = {settings}: makes no model: {error}") from None


def _beginning(target: str, run_directory: Path) -> Path:
    """The directory with the config of what another run learnt: copied here already, or still there."""
    if (run_directory / INIT_FROM).is_dir():
        return run_directory / INIT_FROM
    run, _ = find_checkpoint(target)
    for name in (POLICY, "warm_start", INIT_FROM, "model", "start"):
        if (run / name / "config.json").is_file():
            return run / name
    raise BadInput(f"policy.init_from = {target!r}: its model is in none of its directories: rollcall export {run}")


@dataclass(frozen=True)
class _Work:
    """Tokens at a time."""

    batch_tokens: int  # of a learner step
    tokens: int  # of the learner's largest forward pass
    predicted: int  # of them, whose logits are computed

    @classmethod
    def of(cls, config: LanguageConfig, task: Task) -> _Work:
        actors, algorithm = config.actors, config.algorithm
        room = actors.engine.max_model_len
        completion = min(actors.sampling.max_tokens, room)
        rows = task.rows("train")[:ROWS_LOOKED_AT]
        prompt = min(room - completion, prompt_tokens(config.policy, [all_shown(row) for row in rows]))
        if rows and task.environment(rows[0]) is not None:
            completion = room - prompt  # several turns
        prompts, each = actors.prompts_per_batch, actors.samples_per_prompt
        shares = int(getattr(algorithm, "num_minibatches", 1)) * config.learner.num_processes
        samples = -(-prompts * each // shares)
        shared = config.policy.share_prompts and shares == 1
        minibatch = memory.batch_tokens(
            num_samples=samples, num_prompts=-(-samples // each), prompt=prompt, completion=completion, shared=shared
        )
        budget = int(getattr(algorithm, "pass_tokens", TOKEN_BUDGET))
        tokens = min(minibatch, max(budget, prompt + completion))
        whole = prompts * each * (prompt + completion)
        return cls(whole, tokens, max(1, round(tokens * samples * completion / minibatch)))


def prompt_tokens(policy: LMPolicyConfig, prompts: list[str]) -> int:
    """Of the longest, at the most."""
    longest = max((len(prompt) for prompt in prompts), default=0)
    return longest if policy.model == "tiny" and policy.init_from is None else -(-longest // CHARACTERS_PER_TOKEN) + 8


def step_of(size: ModelSize, policy: LMPolicyConfig, *, tokens: int, predicted: int) -> Step:
    """Of one training pass."""
    half = policy.dtype == "bfloat16"
    saved = size.saved_per_token * (0.6 if half else 1.0)  # what is normalised, and sums, stay float32
    if policy.gradient_checkpointing:
        saved = size.num_layers * size.hidden_size * 4 + saved / max(1, size.num_layers)
    way_back = 4 * size.width  # gradients of a layer's parts

    def logits(device_type: str, device_bytes: int) -> int:
        at_once = workspace_bytes(policy.logits_workspace_mib, device_type=device_type, device_bytes=device_bytes)
        workspace = Workspace(at_once, size.vocab_size)
        gradient = workspace.gradient_bytes_for(predicted, hidden_size=size.hidden_size)
        return workspace.bytes_for(predicted, works_on_logits=size.works_on_logits) + gradient

    return Step(int(tokens * (saved + way_back)), logits("cpu", memory_bytes(CPU)), partial(logits, "cuda"))


def learner_of(
    policy: LMPolicyConfig,
    config: LearnerConfig,
    size: ModelSize,
    *,
    step: Step,
    critic: bool,
    reference: bool,
    base: int,
    copy_on_device: bool,
    shrink: str,
) -> tuple[Part, ...]:
    """What a process that trains language models holds."""
    models = 1 + critic
    trained, frozen = size.num_parameters * models, size.num_parameters * (reference and policy.lora is None)
    if policy.lora is not None:
        targets = (policy.lora.targets,) if isinstance(policy.lora.targets, str) else policy.lora.targets
        adapters = size.adapters(policy.lora.rank, () if targets == ("all-linear",) else targets)
        trained, frozen = models * adapters, models * size.num_parameters
    sharing = config.num_processes if config.sharding != "none" and config.device != "cpu" else 1
    weights = footprint.trained_dtype(policy, config)
    return memory.learner_parts(
        config,
        base=base,
        num_trained=trained,
        num_frozen=frozen,
        step=step,
        published_bytes=4 * size.num_parameters,
        per_trained=footprint.per_trained(
            config,
            weights_dtype=weights,
            published_dtype="float32" if copy_on_device else None,
            num_sharing=sharing,
        ),
        per_frozen=footprint.per_frozen(weights_dtype=footprint.frozen_dtype(policy), num_sharing=sharing)["weights"],
        shrink_step=shrink,
        language=True,
    )


def checkpoint_bytes(policy: LMPolicyConfig, config: LearnerConfig, size: ModelSize, critic: bool) -> int:
    """On disk: the weights as they go out, and what the learner goes on from."""
    trained = size.num_parameters * (1 + critic) if policy.lora is None else 0
    return 4 * size.num_parameters + trained * (4 + footprint.optimizer_bytes(config.optimizer))


def published_dtype(config: LanguageConfig) -> footprint.DTypeName:
    return "float32"


def _engines(config: LanguageConfig, size: ModelSize) -> Engines:
    engine = config.actors.engine
    on_gpu = 4 if engine.dtype == "float32" else 2  # auto: bfloat16 there
    return Engines(
        weights_bytes=size.num_parameters * on_gpu,
        workspace_bytes=_engine_workspace(config, size, engine.max_num_seqs, on_gpu),  # vLLM tries it with so many
        cache_bytes_per_token=size.cache_per_token * on_gpu,
        longest=engine.max_model_len,
        wanted=min(engine.max_num_seqs, config.actors.prompts_per_batch * config.actors.samples_per_prompt),
    )


def _engine_workspace(config: LanguageConfig, size: ModelSize, num_seqs: int, bytes_of_number: int) -> int:
    return memory.engine_workspace(
        vocab_size=size.vocab_size,
        width=size.width,
        num_seqs=num_seqs,
        prefill_tokens=max(PREFILL_TOKENS, config.actors.engine.max_model_len),
        size=bytes_of_number,
    )


def _engine_size(config: LanguageConfig) -> int:
    """Bytes of a parameter of an engine on CPUs."""
    dtype = config.actors.engine.dtype
    return 4 if dtype == "auto" else footprint.SIZE[dtype]


def driver_of(config: LanguageConfig, task: Task, size: ModelSize) -> tuple[Part, ...]:
    """It makes the tiny model, trains the warm start, and writes the policy at the end: one after the other."""
    base = Part("program", memory.LANGUAGE_DRIVER, host=True)
    if config.policy.warm_start is not None:
        return (base, *_warm_start_parts(config, task, size))
    copies = 2 if config.policy.model == "tiny" else 1
    return (
        base,
        *parts(Part("the policy's export", 4 * copies * size.num_parameters, "a smaller policy.model", host=True)),
    )


def _warm_start_parts(config: LanguageConfig, task: Task, size: ModelSize) -> tuple[Part, ...]:
    rows = task.rows("train")[:ROWS_LOOKED_AT]
    texts = ["".join(segment.text for segment in task.demonstration(row)) for row in rows]
    return imitation_of(config.policy, config.learner, size, longest=prompt_tokens(config.policy, texts) + 1, base=0)


def imitation_of(
    policy: LMPolicyConfig, config: LearnerConfig, size: ModelSize, *, longest: int, base: int
) -> tuple[Part, ...]:
    """Of the process that trains a policy's warm start, whose longest demonstration has so many tokens."""
    settings = policy.warm_start
    assert settings is not None
    tokens = min(settings.batch_size * longest, max(settings.token_budget, longest))
    return learner_of(
        policy.model_copy(update={"lora": settings.lora}),
        config.model_copy(update={"num_processes": 1}),
        size,
        step=step_of(size, policy, tokens=tokens, predicted=tokens),
        critic=False,
        reference=False,
        base=base,
        copy_on_device=False,
        shrink="policy.warm_start.token_budget, policy.gradient_checkpointing",
    )


def _beside(config: LanguageConfig) -> list[Role]:
    if config.reward is None and config.preferences is None:
        return []
    found = [Role("scoring", (Part("program", memory.SCORING, host=True),))]
    if config.reward is None or config.reward.scorer is not None:
        model = reward_model_bytes(config.reward)
        found.append(
            Role(
                "reward service",
                parts(
                    Part("program", memory.LANGUAGE_LEARNER, host=True),
                    Part("reward model", model, "reward.scorer", host=True),
                ),
            )
        )
    return found


def reward_model_bytes(config: RewardConfig | None) -> int:
    """Of a reward model that a private service loads, with a forward pass."""
    scorer = None if config is None else config.scorer
    if not isinstance(scorer, RewardModelConfig) or not (Path(scorer.path) / "config.json").is_file():
        return 0
    size = size_of_directory(scorer.path)
    return 4 * size.num_parameters + 4 * scorer.batch_tokens * size.width
