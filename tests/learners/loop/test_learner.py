"""The learner: one step, taken back when it is not finite, saved and restored to the bit, shared without loss."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.cluster.errors import CheckpointDamaged, NonFinite
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.control.a2c import A2C
from rollcall.learners.algorithms.control.a2c_config import A2CConfig
from rollcall.learners.algorithms.control.impala import IMPALA
from rollcall.learners.algorithms.control.impala_config import IMPALAConfig
from rollcall.learners.algorithms.control.ppo import PPO
from rollcall.learners.algorithms.control.ppo_config import PPOConfig
from rollcall.learners.algorithms.control.rnd import RND
from rollcall.learners.algorithms.control.rnd_config import RNDConfig
from rollcall.learners.algorithms.control.trpo import TRPO
from rollcall.learners.algorithms.control.trpo_config import TRPOConfig
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.optimizer_config import AdamConfig, AdamWConfig, RMSpropConfig, SGDConfig
from rollcall.learners.loop.schedules import LinearSchedule
from rollcall.learners.models.policy_config import PolicyConfig
from tests import ROOT
from tests.learners.experience import cartpole, make_learner
from tests.learners.loop import learner_process


def tensors(learner: Any) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in learner.weights(epoch=1, version=0).tensors()}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize(
    "policy",
    [
        PolicyConfig(),
        PolicyConfig(normalise_observations=True),
        PolicyConfig(recurrent="lstm", recurrent_size=16),
        PolicyConfig(shared_torso=True),
    ],
    ids=["mlp", "normalised", "lstm", "shared"],
)
def test_at_lag_zero_the_recomputed_ratio_is_one_before_the_first_update(policy: PolicyConfig) -> None:
    # One epoch of one minibatch: approx_kl and clip_fraction are those of the parameters that acted.
    learner = make_learner(PPO(PPOConfig(epochs=1, num_minibatches=1)), policy=policy)
    for step in range(3):  # later steps with a normaliser that has seen data, too
        weights = learner.weights(epoch=1, version=step)
        report, _ = learner.update([cartpole(weights, ticket=step, policy=policy)], StepOrder(step, 1, 0.0))
        assert abs(report.metrics["approx_kl"]) < 1e-9
        assert report.metrics["clip_fraction"] == 0.0


def test_experience_of_an_older_version_has_another_ratio() -> None:
    learner = make_learner(PPO(PPOConfig(epochs=1, num_minibatches=1)))
    old = learner.weights(epoch=1, version=0)
    learner.update([cartpole(old, ticket=0)], StepOrder(0, 1, 0.0))
    report, _ = learner.update([cartpole(old, ticket=1)], StepOrder(1, 1, 0.0))
    assert report.metrics["approx_kl"] > 1e-7


def with_steps(item: GymTrajectory, **arrays: Any) -> GymTrajectory:
    return replace(item, unroll=replace(item.unroll, steps=replace(item.steps, **arrays)))


@pytest.mark.parametrize("where", ["rewards", "behaviour_logprobs", "observations"])
@pytest.mark.parametrize("optimizer", [AdamWConfig(), RMSpropConfig(weight_decay=0.1)], ids=["adamw", "rmsprop"])
def test_a_step_that_is_not_finite_changes_nothing(where: str, optimizer: Any) -> None:
    policy = PolicyConfig(normalise_observations=True)
    config = LearnerConfig(optimizer=optimizer)
    learner = make_learner(PPO(PPOConfig(epochs=2, num_minibatches=1)), policy=policy, config=config)
    good = cartpole(learner.weights(epoch=1, version=0), policy=policy)
    learner.update([good], StepOrder(0, 1, 0.0))
    before = tensors(learner)
    state = {name: tensor.clone() for name, tensor in learner._state_tensors().items()}
    if where == "observations":
        poisoned = good.steps.observations["observation"].copy()
        poisoned[3, 1, 0] = np.nan
        bad = with_steps(good, observations={"observation": poisoned})
    else:
        array = getattr(good.steps, where).copy()
        array[3, 1] = np.nan
        bad = with_steps(good, **{where: array})
    report, weights = learner.update([bad], StepOrder(1, 1, 0.0))
    assert report.skipped and weights is not None and weights.version == 2
    assert_same(before, tensors(learner))
    for name, tensor in learner._state_tensors().items():
        assert torch.equal(tensor, state[name]), name
    report, _ = learner.update([good], StepOrder(2, 1, 0.0))
    assert not report.skipped  # and it goes on


def test_of_a_batch_that_is_not_finite_nothing_is_learnt_from_there_on() -> None:
    """The second of four minibatches is broken: what the first taught stays, and the last two teach nothing."""
    states = []

    class SecondBroken(PPO):
        def loss(self, context: Any, part: Any) -> Any:
            states.append({name: tensor.clone() for name, tensor in learner._state_tensors().items()})
            found = super().loss(context, part)
            return found._replace(loss=found.loss + (torch.inf if len(states) == 2 else 0.0))

    learner: Any = make_learner(SecondBroken(PPOConfig(epochs=1, num_minibatches=4)))
    report, _ = learner.update([cartpole(learner.weights(epoch=1, version=0))], StepOrder(0, 1, 0.0))
    assert report.skipped and len(states) == 4
    assert [state["optimizer.step.0"] for state in states] == [0.0, 1.0, 1.0, 1.0]
    for name, tensor in learner._state_tensors().items():
        assert torch.equal(tensor, states[1][name]), name


def test_skipped_steps_in_a_row_stop_the_run_and_say_what_to_do() -> None:
    learner = make_learner(PPO(PPOConfig()), config=LearnerConfig(max_skipped_steps=2))
    good = cartpole(learner.weights(epoch=1, version=0))
    bad = with_steps(good, rewards=np.full_like(good.steps.rewards, np.inf))
    learner.update([bad], StepOrder(0, 1, 0.0))
    learner.update([good], StepOrder(1, 1, 0.0))  # not in a row
    learner.update([bad], StepOrder(2, 1, 0.0))
    with pytest.raises(NonFinite, match=r"2 learner steps in a row.*learner\.learning_rate"):
        learner.update([bad], StepOrder(3, 1, 0.0))


@pytest.mark.parametrize(
    "optimizer",
    [AdamConfig(), RMSpropConfig(form="tensorflow"), RMSpropConfig(momentum=0.9), SGDConfig(), SGDConfig(momentum=0.9)],
    ids=["adam", "tensorflow-rmsprop", "rmsprop", "sgd", "momentum"],
)
def test_a_restored_learner_goes_on_to_the_same_bits(tmp_path: Path, optimizer: Any) -> None:
    policy = PolicyConfig(normalise_observations=True, normalise_rewards=True)
    config = LearnerConfig(learning_rate=1e-3, optimizer=optimizer, schedule=LinearSchedule())

    def fresh() -> Any:
        return make_learner(PPO(PPOConfig(epochs=2, num_minibatches=2)), policy=policy, config=config)

    def step(learner: Any, number: int) -> None:
        item = cartpole(learner.weights(epoch=1, version=number), ticket=number, policy=policy)
        learner.update([item], StepOrder(number, 1, number / 10))

    whole, first = fresh(), fresh()
    for number in range(4):
        step(whole, number)
    for number in range(2):
        step(first, number)
    first.save(tmp_path, first.weights(epoch=1, version=2))
    second = fresh()
    second.restore(tmp_path)
    for number in range(2, 4):
        step(second, number)
    assert_same(tensors(whole), tensors(second))


def test_weight_decay_takes_its_share_of_matrices_whatever_their_gradient_and_none_of_biases() -> None:
    """AdamW's decay is decoupled: one step with it less one without is - learning_rate * weight_decay * what was."""
    after = []
    for weight_decay in (0.0, 0.5):
        learner = make_learner(
            PPO(PPOConfig(epochs=1, num_minibatches=1)),
            config=LearnerConfig(learning_rate=0.01, optimizer=AdamWConfig(weight_decay=weight_decay)),
        )
        before = tensors(learner)
        learner.update([cartpole(learner.weights(epoch=1, version=0))], StepOrder(0, 1, 0.0))
        after.append(tensors(learner))
    for name, was in before.items():
        expected = -0.01 * 0.5 * was if was.ndim == 2 else np.zeros_like(was)
        np.testing.assert_allclose(after[1][name] - after[0][name], expected, atol=1e-7, err_msg=name)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    small = make_learner(PPO(PPOConfig()), policy=PolicyConfig(hidden_sizes=(8,)))
    small.save(tmp_path, small.weights(epoch=1, version=0))
    with pytest.raises(CheckpointDamaged, match="another model"):
        make_learner(PPO(PPOConfig())).restore(tmp_path)


def test_annealing_counts_the_consumed_part_of_the_run() -> None:
    learner = make_learner(PPO(PPOConfig()), config=LearnerConfig(learning_rate=1e-3, schedule=LinearSchedule()))
    item = cartpole(learner.weights(epoch=1, version=0))
    rates = [learner.update([item], StepOrder(0, 1, progress))[0].learning_rate for progress in (0.0, 0.25, 0.9)]
    assert rates == pytest.approx([1e-3, 7.5e-4, 1e-4])
    before = tensors(learner)
    learner.update([item], StepOrder(0, 1, 1.0))
    assert_same(before, tensors(learner))  # a rate of zero moves nothing


@pytest.mark.parametrize(
    "algorithm",
    [PPO(PPOConfig()), A2C(A2CConfig()), IMPALA(IMPALAConfig()), TRPO(TRPOConfig()), RND(RNDConfig())],
    ids=["ppo", "a2c", "impala", "trpo", "rnd"],
)
def test_the_learner_drives_every_algorithm_alike(algorithm: Any) -> None:
    learner = make_learner(algorithm)
    before = tensors(learner)
    report, weights = learner.update([cartpole(learner.weights(epoch=1, version=0))], StepOrder(0, 1, 0.0))
    assert weights is not None and weights.compute_checksum() == weights.checksum
    assert {"loss", "grad_norm", "entropy", "policy_loss", "explained_variance"} <= report.metrics.keys()
    assert report.metrics["explained_variance"] < 0.5  # of a critic that has learnt nothing yet
    after = tensors(learner)
    assert any((before[name] != after[name]).any() for name in before)


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process, and two together, made of the same experience."""
    folder = tmp_path_factory.mktemp("updates")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    program = [sys.executable, "-m", "tests.learners.loop.learner_process"]
    commands = [[*program, str(rank), "2", address, str(folder)] for rank in range(2)]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for command in commands]
    learner_process.main(0, 1, "", folder)
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return folder


@pytest.mark.parametrize("kind", learner_process.KINDS)
def test_two_learner_processes_give_the_update_of_one(updates: Path, kind: str) -> None:
    alone = np.load(updates / f"{kind}-1-0.npz")
    for name in alone.files:
        shared = [np.load(updates / f"{kind}-2-{rank}.npz")[name] for rank in range(2)]
        np.testing.assert_array_equal(shared[0], shared[1], err_msg=name)
        np.testing.assert_allclose(shared[0], alone[name], atol=1e-5, rtol=0, err_msg=name)
    metrics = [dict(ast.literal_eval((updates / f"{kind}-{n}.txt").read_text())) for n in ("1-0", "2-0")]
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-4)


def test_a_loss_that_one_of_two_processes_has_wrong_is_skipped_by_both(updates: Path) -> None:
    for which in ("1-0", "2-0", "2-1"):
        assert (updates / f"broken-{which}.txt").read_text() == "skipped=True same=True"
