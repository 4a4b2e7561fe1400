"""One of several learner processes: `python -m tests.learners.loop.learner_process RANK NUM ADDRESS OUT`.
Run by test_learner.py, which is itself the one process that several are held against."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.control.ppo import PPO
from rollcall.learners.algorithms.control.ppo_config import KLPenalty, PPOConfig
from rollcall.learners.algorithms.control.rnd import RND
from rollcall.learners.algorithms.control.rnd_config import RNDConfig
from rollcall.learners.algorithms.control.trpo import TRPO
from rollcall.learners.algorithms.control.trpo_config import TRPOConfig
from rollcall.learners.collective import Collective
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.models.policy_config import PolicyConfig
from tests.learners.experience import cartpole, make_learner
from tests.learners.loop.own_update import NaturalGradient


class Faulty(PPO):
    """Whose loss is infinite on one process, from a certain moment on. Its gradient is finite."""

    broken = False

    def loss(self, context: Any, part: Any) -> Any:
        found = super().loss(context, part)
        return found._replace(loss=found.loss + (torch.inf if self.broken else 0.0))


KINDS = ("feedforward", "recurrent", "own-update", "trpo", "rnd")


def main(rank: int, num_processes: int, address: str, out: Path) -> None:
    collective = Collective()
    if num_processes > 1:
        collective = Collective.join(
            rank=rank, num_processes=num_processes, address=address, device=torch.device("cpu"), timeout_s=60
        )
    for kind in KINDS:
        policy = PolicyConfig(recurrent="gru" if kind == "recurrent" else "none", recurrent_size=32)
        algorithm: Any = Faulty(PPOConfig(epochs=2, num_minibatches=2, target_kl=10.0))
        if kind == "own-update":
            algorithm = NaturalGradient()
        if kind == "trpo":
            algorithm = TRPO(TRPOConfig(critic_epochs=2, critic_minibatches=3))
        if kind == "rnd":
            penalty = KLPenalty(target=1e-5)
            algorithm = RND(RNDConfig(epochs=2, num_minibatches=2, kl_penalty=penalty))
        config = LearnerConfig(learning_rate=1e-3)
        learner = make_learner(algorithm, policy=policy, config=config, collective=collective)
        first = learner.weights(epoch=1, version=0)
        batch = [cartpole(first, ticket=ticket, policy=policy) for ticket in range(2)]
        report, _ = learner.update(batch, StepOrder(0, 1, 0.0))
        published: dict[str, Any] = dict(learner.weights(epoch=1, version=1).tensors())
        np.savez(out / f"{kind}-{num_processes}-{rank}.npz", **published)
        (out / f"{kind}-{num_processes}-{rank}.txt").write_text(repr(sorted(report.metrics.items())))
        if kind == "feedforward":
            algorithm.broken = rank == num_processes - 1
            before = {name: tensor.clone() for name, tensor in learner._state_tensors().items()}
            report, _ = learner.update(batch, StepOrder(1, 1, 0.0))
            same = all(torch.equal(tensor, before[name]) for name, tensor in learner._state_tensors().items())
            (out / f"broken-{num_processes}-{rank}.txt").write_text(f"skipped={report.skipped} same={same}")
    collective.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
