"""PPO-ptx: beside the policy's loss the likelihood of demonstrations, of whole texts, and their gradients together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rollcall.cluster.messages.reports import StepOrder
from rollcall.learners.algorithm import Context
from rollcall.learners.algorithms.language.lm_ppo import LMPPO
from rollcall.learners.algorithms.language.lm_ppo_config import LMPPOConfig
from rollcall.learners.algorithms.language.supervised_term import MixedMinibatch, SupervisedPart
from rollcall.learners.batches.token_batch import TokenBatch
from rollcall.learners.collators.language import LanguageCollator
from rollcall.learners.data.demonstrations import Demonstration
from rollcall.learners.data.source import ShuffledSource
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.token_policy import TokenPolicy
from tests.learners.experience import context_of
from tests.learners.token_experience import ALPHABET, TOKEN_BUDGET, make_models, published, samples, write_model
from tests.needs import require

require("transformers")

CPU = torch.device("cpu")
COEF = 0.7


def shown(prompt: str, answer: str) -> Demonstration:
    tokens = [3 + ALPHABET.index(character) for character in prompt + answer] + [1]
    return Demonstration(np.array(tokens, np.int32), np.arange(len(tokens)) >= len(prompt))


DEMONSTRATIONS = [shown("1+2=", "3"), shown("12+34=", "46"), shown("5+6=", "11"), shown("0+0=", "0"), shown("9=", "9")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


def collator(batch_size: int = 4) -> LanguageCollator:
    source = ShuffledSource(DEMONSTRATIONS, batch_size=batch_size, steps=10, seed=5)
    return LanguageCollator(token_budget=TOKEN_BUDGET, beside=lambda step: source.take(step) or ())


def context_for(directory: Path, config: LMPPOConfig) -> tuple[Context, dict[str, nn.Module]]:
    models = make_models(directory, LMPPO(config), LMPolicyConfig(), CPU)
    return context_of(models), models


def gradient_of(loss: Tensor, models: dict[str, nn.Module]) -> Tensor:
    trained = [p for name in ("policy", "critic") for p in models[name].parameters()]
    found = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def literal_ptx(policy: nn.Module, items: list[Demonstration]) -> Tensor:
    """The mean cross-entropy of the imitated tokens under the model itself, one sequence at a time."""
    assert isinstance(policy, TokenPolicy)
    terms = []
    for item in items:
        logits = policy.model(input_ids=torch.from_numpy(item.token_ids.astype(np.int64))[None]).logits[0]
        places = np.flatnonzero(item.imitated)
        targets = torch.from_numpy(item.token_ids[places].astype(np.int64))
        terms.append(nn.functional.cross_entropy(logits[places - 1], targets, reduction="none"))
    return torch.cat(terms).mean()


def summed(algorithm: Any, context: Context, minibatch: MixedMinibatch, processes: int) -> tuple[Tensor, float]:
    """(loss, ptx_loss) over all parts and processes."""
    loss, ptx = torch.zeros(()), 0.0
    for rank in range(processes):
        kinds = set()
        for part in minibatch.shards(rank, processes):
            found = algorithm.loss(context, part)
            loss, ptx = loss + found.loss, ptx + float(found.metrics.get("ptx_loss", 0.0))
            kinds.add(isinstance(part, SupervisedPart))
        assert kinds == {False, True}, "every process has some of both, as all processes gather what is in pieces"
    return loss, ptx


@pytest.mark.parametrize("processes", [1, 2])
def test_every_minibatch_has_the_gradient_of_ppo_and_of_its_share_of_demonstrations(
    directory: Path, processes: int
) -> None:
    settings: dict[str, Any] = {"num_minibatches": 2, "epochs": 2, "kl_coef": 0.1, "token_budget": TOKEN_BUDGET}
    plain, mixed = LMPPOConfig(**settings), LMPPOConfig(**settings, ptx_coef=COEF, ptx_batch_size=4)
    context, models = context_for(directory, plain)
    batch: TokenBatch = collator().collate(samples(directory, step=0), CPU, step=3)
    of_step = ShuffledSource(DEMONSTRATIONS, batch_size=4, steps=10, seed=5).take(3)
    assert of_step is not None
    alone, both = LMPPO(plain), LMPPO(mixed)
    without = LanguageCollator(token_budget=TOKEN_BUDGET).collate(samples(directory, step=0), CPU, step=3)
    ppo = list(alone.minibatches(context_of(models), alone.prepare(context, without)))
    found = list(both.minibatches(context_of(models), both.prepare(context, batch)))
    assert [minibatch.ends_epoch for minibatch in found] == [False, True, False, True]
    for index, (own, minibatch) in enumerate(zip(ppo, found, strict=True)):
        assert isinstance(minibatch, MixedMinibatch)
        share = of_step[:2] if index % 2 == 0 else of_step[2:]  # every epoch passes over all of them
        literal = literal_ptx(models["policy"], share)
        parts = [part for rank in range(processes) for part in own.shards(rank, processes)]
        expected = torch.stack([alone.loss(context, part).loss for part in parts]).sum() + COEF * literal
        loss, ptx = summed(both, context, minibatch, processes)
        assert ptx == pytest.approx(float(literal.detach()), abs=1e-5)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient_of(loss, models), gradient_of(expected, models), atol=1e-5, rtol=1e-4)


def make_learner(directory: Path, config: LMPPOConfig) -> Learner:
    algorithm = LMPPO(config)
    return Learner(
        models=make_models(directory, algorithm, LMPolicyConfig(), CPU),
        algorithm=algorithm,
        config=LearnerConfig(learning_rate=1e-2),
        policy_id="policy",
        run_seed=0,
        collator=collator(),
        published=("policy",),
    )


def order(step: int, checkpoint: Path | None = None) -> StepOrder:
    return StepOrder(step=step, epoch=1, progress=0.0, checkpoint_directory=checkpoint)


def test_a_learner_that_goes_on_from_a_checkpoint_mixes_in_the_same_and_has_the_same_bits(
    directory: Path, tmp_path: Path
) -> None:
    config = LMPPOConfig(ptx_coef=COEF, ptx_batch_size=4, num_minibatches=2, token_budget=TOKEN_BUDGET)
    whole = make_learner(directory, config)
    (tmp_path / "checkpoint").mkdir()
    for step in range(4):
        kept = tmp_path / "checkpoint" if step == 1 else None
        report, _ = whole.update(samples(directory, step=step), order(step, kept))
        assert report.metrics["ptx_loss"] > 0
    again = make_learner(directory, config)
    again.restore(tmp_path / "checkpoint")
    for step in (2, 3):
        again.update(samples(directory, step=step), order(step))
    for name, array in published(whole).items():
        np.testing.assert_array_equal(array, published(again)[name])


def test_what_is_imitated_beside_is_forgotten_less(directory: Path) -> None:
    """By far: of one seed, after 10 steps along samples drawn anyhow, the demonstrations' loss with the term is 0.56 of
    that without it, and the gap grows with the steps."""

    def loss_after(coef: float) -> float:
        config = LMPPOConfig(ptx_coef=coef, ptx_batch_size=5, token_budget=TOKEN_BUDGET)
        learner = make_learner(directory, config)
        for step in range(10):
            learner.update(samples(directory, step=step), order(step))
        policy = learner._models["policy"]
        with torch.no_grad():
            return float(literal_ptx(policy, DEMONSTRATIONS))

    assert loss_after(1.0) < 0.7 * loss_after(1e-9)


def test_settings_that_mix_nothing_are_refused_in_one_line() -> None:
    with pytest.raises(ValidationError, match=r"ptx_file='a.jsonl' with ptx_coef=0: nothing is learnt from it"):
        LMPPOConfig(ptx_file="a.jsonl")
    with pytest.raises(ValidationError, match="ptx_batch_size=2 with num_minibatches=4: every minibatch needs a"):
        LMPPOConfig(ptx_coef=0.1, ptx_batch_size=2, num_minibatches=4)
    assert LMPPOConfig(ptx_batch_size=2, num_minibatches=4).supervised_coef == 0
