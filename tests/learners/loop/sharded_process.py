"""One of several learner processes of a language model, or the one that there is:
`python -m tests.learners.loop.sharded_process RANK NUM ADDRESS MODEL OUT SCENARIO`. Goes through the scenario and
leaves what came of it in OUT. Run by test_sharded.py."""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.language.grpo_config import GRPOConfig
from rollcall.learners.algorithms.language.lm_ppo import LMPPO
from rollcall.learners.algorithms.language.lm_ppo_config import LMPPOConfig
from rollcall.learners.algorithms.language.online_dpo import OnlineDPO
from rollcall.learners.algorithms.language.online_dpo_config import OnlineDPOConfig
from rollcall.learners.collective import Collective
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from tests.learners.token_experience import TOKEN_BUDGET, make_learner, published, samples, with_lora

COMMON: dict[str, Any] = {"kl_coef": 0.1, "num_minibatches": 2, "token_budget": TOKEN_BUDGET}
ONE_BY_ONE = {**COMMON, "token_budget": 1, "num_minibatches": 1}  # nine parts: not the same number for two
AUTOCAST = LMPolicyConfig(dtype="bfloat16", weights_dtype="float32", gradient_checkpointing=True)
PACKED = LMPolicyConfig(attention="flex", gradient_checkpointing=True)
# Algorithm, policy, optimiser and its step size.
SCENARIOS: dict[str, tuple[Any, LMPolicyConfig, Any, float]] = {
    "grpo": (GRPO(GRPOConfig(**COMMON, epochs=2)), LMPolicyConfig(), "adam", 1e-3),
    # Two or three tokens at once: each part's logits in several chunks.
    "chunks": (GRPO(GRPOConfig(**COMMON)), LMPolicyConfig(logits_workspace_mib=0.001), "adam", 1e-3),
    "critic": (LMPPO(LMPPOConfig(**COMMON)), LMPolicyConfig(), "rmsprop", 1e-3),
    "adapters": (GRPO(GRPOConfig(**COMMON)), with_lora(), "adam", 1e-3),
    "bfloat16": (GRPO(GRPOConfig(**COMMON)), AUTOCAST, "sgd", 0.1),
    "mixed": (GRPO(GRPOConfig(**COMMON)), LMPolicyConfig(dtype="bfloat16"), "adamw", 1e-3),
    "packed": (GRPO(GRPOConfig(**COMMON)), PACKED, "adam", 1e-3),
    "pairs": (OnlineDPO(OnlineDPOConfig(beta=0.5, token_budget=1)), LMPolicyConfig(), "adam", 1e-3),  # three prompts
    "one-by-one": (GRPO(GRPOConfig(**ONE_BY_ONE)), LMPolicyConfig(gradient_checkpointing=True), "adam", 1e-3),
}
RESUMED = ("grpo", "critic", "adapters", "mixed")
KEPT_ON_DEVICE = ("grpo", "adapters")  # what several processes hand out; the one process they are held against: nothing
BROKEN = 7  # the step whose rewards are not numbers


class Case:
    """One scenario, as one process sees it."""

    def __init__(self, name: str, collective: Collective, model: Path, out: Path) -> None:
        self.algorithm, self.policy, optimizer, rate = SCENARIOS[name]
        settings: dict[str, Any] = {"learning_rate": rate, "optimizer": {"kind": optimizer, "weight_decay": 0.1}}
        self.config = LearnerConfig(**settings, sharding="fsdp", max_grad_norm=0.5)
        self.name, self.collective, self.model = name, collective, model
        self.label = str(out / f"{name}-{collective.num_processes}")
        self.other = Path(str(out / f"{name}-1.checkpoint"))

    def learner(self, checkpoint: Path | None = None) -> Any:
        learner = make_learner(
            self.model,
            self.algorithm,
            policy=self.policy,
            config=self.config,
            collective=self.collective,
            keep_on_device=self.name in KEPT_ON_DEVICE and self.collective.num_processes > 1,
        )
        if checkpoint is not None:
            learner.restore(checkpoint)
        return learner

    def step(self, learner: Any, number: int, directory: Path | None = None) -> Any:
        batch = samples(self.model, step=number)
        if number == BROKEN:
            batch[0] = replace(batch[0], rewards=np.full_like(batch[0].rewards, np.nan))
        return learner.update(batch, StepOrder(number, 1, 0.0, directory))[0]

    def keep(self, learner: Any, when: str) -> None:
        arrays: dict[str, Any] = published(learner)
        if self.collective.rank == 0:
            np.savez(f"{self.label}.{when}.npz", **arrays)
        canary = learner.weights(epoch=1, version=0).canary
        np.save(f"{self.label}.{when}.canary-{self.collective.rank}.npy", canary.logprobs)
        if learner.device_copy is not None:
            assert learner.device_copy.tensors.keys() == arrays.keys()
            for name, tensor in learner.device_copy.tensors.items():
                np.testing.assert_array_equal(tensor.numpy(), arrays[name])

    def run(self) -> None:
        """Two updates and a checkpoint, a broken batch, a third update; and the same again from checkpoints."""
        checkpoint = Path(f"{self.label}.checkpoint")
        checkpoint.mkdir(exist_ok=True)
        held = held_bytes()
        learner = self.learner()
        self.keep(learner, "0")
        results = [self.step(learner, 0)]
        copied = {} if learner.device_copy is None else learner.device_copy.tensors  # whole, for an engine beside it
        held = held_bytes() - held - sum(tensor.nbytes for tensor in copied.values())
        self.keep(learner, "1")
        results.append(self.step(learner, 1, checkpoint))
        before = {key: tensor.clone() for key, tensor in learner._state_tensors().items()}
        skipped = self.step(learner, BROKEN)
        unchanged = all(torch.equal(tensor, before[key]) for key, tensor in learner._state_tensors().items())
        results.append(self.step(learner, 2))
        self.keep(learner, "3")
        for when, directory in (("resumed", checkpoint), ("taken-over", self.other)):
            if self.name not in RESUMED or (when == "taken-over" and self.collective.num_processes == 1):
                continue
            resumed = self.learner(directory)
            self.step(resumed, BROKEN)
            self.step(resumed, 2)
            self.keep(resumed, when)
        report = {
            "kind": type(learner._trained).__name__,
            "held": held,
            "skipped": skipped.skipped,
            "unchanged": unchanged,
            "metrics": [dict(result.metrics) for result in results],
        }
        Path(f"{self.label}-{self.collective.rank}.json").write_text(json.dumps(report))


def held_bytes() -> int:
    """Of all tensors there are in this process."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, torch.nn.Parameter):  # of a DTensor its shards count alone
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def main(rank: int, num_processes: int, address: str, model: Path, out: Path, scenario: str) -> None:
    collective = Collective()
    if num_processes > 1:
        collective = Collective.join(
            rank=rank, num_processes=num_processes, address=address, device=torch.device("cpu"), timeout_s=60
        )
    Case(scenario, collective, model, out).run()
    collective.leave()


def wait_in_vain(rank: int, address: str, model: Path, out: Path) -> None:
    """Process 1 takes no part in the step."""
    collective = Collective.join(rank=rank, num_processes=2, address=address, device=torch.device("cpu"), timeout_s=5)
    case = Case("grpo", collective, model, out)
    learner = case.learner()
    if rank == 1:
        time.sleep(30)
        return
    began = time.monotonic()
    try:
        case.step(learner, 0)
    except RuntimeError as error:
        report = {"waited_s": time.monotonic() - began, "error": str(error)}
        (out / "in-vain.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5])
    if sys.argv[6] == "in-vain":
        wait_in_vain(int(sys.argv[1]), *where)
    else:
        main(int(sys.argv[1]), int(sys.argv[2]), *where, sys.argv[6])
