"""PPO for language models (Ouyang et al., 2022, arXiv:2203.02155): a critic values the state before each token, so that
credit differs within a sample; the KL to the reference is in the reward of each token. With ptx_coef, PPO-ptx."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from rollcall.learners.algorithm import Metrics, Models
from rollcall.learners.algorithms.language.lm_ppo_config import LMPPOConfig
from rollcall.learners.algorithms.language.token_algorithm import (
    BeforeUpdate,
    LMPart,
    TokenMethod,
    clipped_surrogate,
    rewards_of_tokens,
)
from rollcall.learners.batches.token_batch import TokenRows
from rollcall.learners.maths import losses
from rollcall.learners.maths.group_advantages import token_gae, whiten


def advantages(config: LMPPOConfig, before: BeforeUpdate) -> dict[str, Tensor]:
    values = before.evaluate(lambda rows: _values(before.models, rows))
    found, returns = token_gae(
        rewards=rewards_of_tokens(before),
        values=values,
        lengths=before.batch.lengths,
        discount=config.discount,
        lam=config.gae_lambda,
    )
    return {"advantages": whiten(values=found), "returns": returns, "proximal_values": values}


def value_loss(config: LMPPOConfig, models: Models, part: LMPart) -> tuple[Tensor, Metrics]:
    """Over all tokens, also those that the policy's loss leaves out: their states have values all the same."""
    values, returns = _values(models, part.rows), part.targets.returns
    assert returns is not None
    over = {"mask": part.weights, "num_valid": part.weights.new_ones(())}
    if config.value_clip_range is None:
        loss = losses.squared_value_loss(values=values, returns=returns, **over)
    else:
        before, clip_range = part.targets.proximal_values, config.value_clip_range
        assert before is not None
        loss = losses.clipped_value_loss(
            values=values, behaviour_values=before, returns=returns, clip_range=clip_range, **over
        )
    return config.value_coef * loss, {"value_loss": loss.detach()}


def _values(models: Models, rows: TokenRows) -> Tensor:
    return cast(Tensor, models["critic"](rows))


ALGORITHM = LMPPO = TokenMethod(LMPPOConfig, advantages, clipped_surrogate, extra_loss=value_loss, critic=True)
