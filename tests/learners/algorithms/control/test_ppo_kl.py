"""PPO with a penalty on the KL to the policy before the update: its loss sample by sample, and how an adaptive weight
follows what the updates did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Categorical

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithms.control.ppo import KL_PENALTY, PPO
from rollcall.learners.algorithms.control.ppo_config import PPOConfig
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.maths.trust_region import adapted_coefficient
from rollcall.learners.models.networks import ActorCritic
from tests.learners.experience import cartpole, context_of, make_learner

MakePolicy = Callable[..., ActorCritic]
MakeBatch = Callable[..., GymBatch]


def ppo(**penalty: Any) -> PPO:
    return PPO(PPOConfig.model_validate({"epochs": 2, "num_minibatches": 1, "kl_penalty": penalty}))


def test_the_loss_is_the_ratio_less_what_the_kl_weighs(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    """J - eta KL(old || new), step by step, at parameters that have moved away from the old ones."""
    policy = make_policy()
    batch = make_batch(policy)
    algorithm = ppo(coef=0.7)
    context = context_of({"actor_critic": policy})
    prepared = algorithm.prepare(context, batch)
    before = policy.policy_params(batch.steps.observations).detach()
    with torch.no_grad():
        policy.policy_head.weight.add_(0.3 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    (minibatch, _) = algorithm.minibatches(context, prepared)
    found = algorithm.loss(context, minibatch)
    advantages = minibatch.rows.targets.advantages.view(batch.shape)
    returns = prepared.targets.returns.view(batch.shape)
    total, kls = torch.zeros(()), []
    for t, b in batch.steps.mask.nonzero().tolist():
        params, value, _ = policy({"observation": batch.steps.observations["observation"][t, b]})
        assert value is not None
        logprob = params.log_softmax(-1)[batch.steps.actions[t, b]]
        ratio = (logprob - batch.steps.behaviour_logprobs[t, b]).exp()
        kls.append(torch.distributions.kl_divergence(Categorical(logits=before[t, b]), Categorical(logits=params)))
        total = total - ratio * advantages[t, b] + 0.7 * kls[-1] + 0.5 * 0.5 * (value - returns[t, b]) ** 2
    torch.testing.assert_close(found.loss, total / len(kls))
    assert float(torch.stack(kls).detach().mean()) > 0.01
    gradients = [torch.autograd.grad(loss, list(policy.parameters())) for loss in (found.loss, total / len(kls))]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert "clip_fraction" not in found.metrics


def test_the_weight_is_halved_below_two_thirds_of_the_target_and_doubled_above_three_halves() -> None:
    kls = [0.0, 0.00666, 0.00667, 0.01, 0.01499, 0.01501, 5.0, float("nan"), float("inf")]
    adapted = [float(adapted_coefficient(coef=torch.tensor(3.0), kl=torch.tensor(kl), target=0.01)) for kl in kls]
    assert adapted == [1.5, 1.5, 3.0, 3.0, 3.0, 6.0, 6.0, 3.0, 3.0]


def one_step(learner: Any, *, spoilt: bool = False) -> Any:
    item = cartpole(learner.weights(epoch=1, version=0))
    if spoilt:
        item.steps.rewards[2, 0] = float("nan")
    return learner.update([item], StepOrder(0, 1, 0.0))[0]


@pytest.mark.parametrize(("target", "factor"), [(10.0, 0.5), (1e-6, 2.0)])
def test_an_adaptive_weight_follows_the_update_into_the_checkpoint(
    tmp_path: Path, target: float, factor: float
) -> None:
    learner: Any = make_learner(ppo(coef=0.4, target=target))
    report = one_step(learner)
    assert report.metrics["kl_coef"] == pytest.approx(0.4)  # of this batch
    assert 1e-6 < report.metrics["kl_old"] < 1.0
    assert float(learner._models[KL_PENALTY].value) == pytest.approx(0.4 * factor)
    learner.save(tmp_path, learner.weights(epoch=1, version=1))
    again: Any = make_learner(ppo(coef=0.4, target=target))
    again.restore(tmp_path)
    assert float(again._models[KL_PENALTY].value) == pytest.approx(0.4 * factor)
    assert one_step(again, spoilt=True).skipped
    assert float(again._models[KL_PENALTY].value) == pytest.approx(0.4 * factor)


def test_a_heavier_penalty_holds_the_policy_nearer() -> None:
    distances = []
    for coef in (0.01, 30.0):
        config = LearnerConfig(learning_rate=0.02)
        report = one_step(make_learner(PPO(PPOConfig.model_validate({"kl_penalty": {"coef": coef}})), config=config))
        distances.append(report.metrics["kl_old"])
    assert distances[1] < 0.2 * distances[0]


def test_without_a_penalty_nothing_is_kept_or_reported() -> None:
    learner: Any = make_learner(PPO(PPOConfig()))
    assert KL_PENALTY not in learner._models and KL_PENALTY not in make_learner(ppo(coef=1.0))._models  # type: ignore[operator]
    assert not {"kl_old", "kl_coef"} & one_step(learner).metrics.keys()
