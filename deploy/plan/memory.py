"""What processes hold, in bytes, of models and batches of a given size. Sums and products; what a process is there for,
kinds of runs know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rollcall.deploy.plan.needs import MIB, Part, Role, parts
from rollcall.learners.loop import footprint
from rollcall.learners.loop.config import LearnerConfig

# What a process takes before it holds anything of a run: Python, and what it has imported. Measured on Linux with
# Python 3.11, torch 2.13, Ray 2.56 and vLLM 0.32 for CPUs: benchmarks/plan_against_peak.py prints them again.
DRIVER = 360 * MIB
LANGUAGE_DRIVER = 450 * MIB  # transformers, and tokenizers
LEARNER = 390 * MIB
LANGUAGE_LEARNER = 480 * MIB
GYM_ACTOR = 330 * MIB
ENGINE = 680 * MIB
PARAMETER_SERVER = 62 * MIB  # likewise
SCORING = 300 * MIB
RAY = 370 * MIB  # a private cluster's own processes, which share many pages: each page once
ON_GPU = 1200 * MIB  # of the machine's memory, of a process that uses a GPU: CUDA's libraries
CUDA = 600 * MIB  # of a GPU, of each process that uses it

SMALL_BATCH = 64 * MIB  # of a control batch in the midst of everything: arenas of the allocator, kernels' scratch
FRAGMENTS = 1.1  # an allocator's holes between tensors that come and go


@dataclass(frozen=True)
class Step:
    """What a training pass holds at its worst, beside the parameters."""

    activations: int
    logits: int = 0
    logits_on_gpu: Callable[[int], int] | None = None  # of a GPU with so many bytes

    @property
    def size_bytes(self) -> int:
        return self.activations + self.logits


_SHRINKS = {
    "weights": "policy.lora, a smaller policy.model",
    "gradients": "policy.lora, learner.sharding=fsdp",
    "optimizer": "policy.lora, learner.optimizer",
}


def learner_parts(
    config: LearnerConfig,
    *,
    base: int,
    num_trained: int,
    num_frozen: int,
    step: Step,
    published_bytes: int,
    per_trained: dict[str, float],
    per_frozen: float,
    shrink_step: str,
    language: bool,
) -> tuple[Part, ...]:
    """Of one learner process. `published_bytes`: of what it hands out; process 0 does."""
    held = [
        Part(name.replace("_", " "), int(num_trained * size), _SHRINKS.get(name, "") if language else "policy")
        for name, size in per_trained.items()
    ]
    offloaded = [
        Part(f"{name}, offloaded", int(num_trained * size), "policy.lora", host=True)
        for name, size in footprint.per_offloaded(config).items()
    ]
    return parts(
        Part("program", base, host=True),
        *held,
        *offloaded,
        Part("frozen models", int(num_frozen * per_frozen), "algorithm.kl_coef=0, policy.lora"),
        Part("activations", int(step.activations * FRAGMENTS), shrink_step),
        Part("logits", step.logits, shrink_step, on_gpu=step.logits_on_gpu),
        # What is published is put together after the step, when activations and logits are gone.
        Part("published weights", published_bytes, "policy.lora, a smaller policy.model", host=True),
    )


def engine_parts(
    *,
    base: int,
    weights_bytes: int,
    cache_bytes: int,
    workspace_bytes: int,
    gpu_workspace_bytes: int,
    cache_setting: str,
) -> tuple[Part, ...]:
    """Of a process with a generation engine."""
    return parts(
        Part("program", base, host=True),
        Part("weights", weights_bytes, "actors.engine.dtype=bfloat16, a smaller policy.model"),
        Part("KV cache", cache_bytes, cache_setting),
        Part("workspace", workspace_bytes, "actors.engine.max_num_seqs", on_gpu=lambda _: gpu_workspace_bytes),
    )


SAMPLING_COPIES = 3  # log-probabilities, probabilities, noise


def engine_workspace(*, vocab_size: int, width: int, num_seqs: int, prefill_tokens: int, size: int) -> int:
    """What an engine's step holds at its worst: the widest part of a layer for all tokens of a prefill, or the logits
    of all sequences, as the model gives them and in float32, some times over in sampling."""
    return max(prefill_tokens * width * size, num_seqs * vocab_size * (size + SAMPLING_COPIES * 4))


def batch_tokens(*, num_samples: int, num_prompts: int, prompt: int, completion: int, shared: bool) -> int:
    """Of samples as rows, with a prompt once for all its samples where they share it."""
    return (num_prompts if shared else num_samples) * prompt + num_samples * completion


def together(roles: Sequence[Role]) -> Role:
    """Of a serial run: one process, whose program is the largest of theirs."""
    program = max(part.size_bytes for role in roles for part in role.parts if part.name == "program")
    held = [part for role in roles for part in role.parts if part.name != "program"]
    return Role("the run's process", (Part("program", program, host=True), *held), 1, "learner")
