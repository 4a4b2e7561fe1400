"""The settings of online DPO, and what it needs of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.learners.algorithms.language.token_settings import TOKEN_BUDGET
from rollcall.learners.declared import Declared, Needs


class OnlineDPOConfig(BaseModel):
    """Settings of on-line DPO."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["online_dpo"] = Field(default="online_dpo", description="the algorithm")
    beta: float = Field(default=0.1, gt=0, description="how near to the reference: larger is nearer; tau of IPO's loss")
    loss: Literal["dpo", "ipo"] = Field(default="dpo", description="of a pair")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="of DPO's loss: share of orders that are wrong (conservative DPO)"
    )
    pairs: Literal["best_worst", "all"] = Field(
        default="best_worst",
        description="best_worst: a prompt's best and worst sample; all: every pair of its samples that differs in "
        "reward, the prompt weighing the same",
    )
    token_budget: int | None = Field(
        default=None,
        ge=1,
        description="padded tokens of one forward pass: bounds memory, changes no result; null: 16384, or as many as "
        "there is memory for where rollcall plan finds that too many",
    )

    @model_validator(mode="after")
    def _smooths_what_can_be(self) -> OnlineDPOConfig:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing: is of loss=dpo: IPO's loss has a finite optimum without it")
        return self

    @property
    def pass_tokens(self) -> int:
        """Of one forward pass, padded, at the most."""
        return TOKEN_BUDGET if self.token_budget is None else self.token_budget


DECLARED = Declared(OnlineDPOConfig, Needs(reference=True, min_group_size=2, corrects_policy_lag=True), unit="prompt")
