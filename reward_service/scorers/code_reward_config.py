"""The settings of a reward in Python, which nobody trusts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.sandbox.limits import Limits

_LIMITS = Limits(cpu_s=600, processes=2, disk_bytes=1 << 20, file_bytes=1 << 16)


class CodeRewardConfig(Strict):
    """The rewards of an env's steps by Python that runs in the sandbox, from its standard library alone."""

    kind: Literal["code_reward"] = "code_reward"
    code: str = Field(
        min_length=1,
        max_length=50_000,
        description="defines compute_reward(observation, action, next_observation, terminated) -> (reward, components)",
    )
    call_s: float = Field(default=1e-3, gt=0, le=10, description="processor time of one call, the mean of a request")
    sandbox: Literal["required", "unsafe"] = Field(
        default="required", description="unsafe: run code even where this machine cannot contain it"
    )
    limits: Limits = Field(default=_LIMITS, description="wall_s: of one request, beyond what its calls may take")
