"""The settings of a scorer of answers in mathematics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.answers.final_answer import (
    AnswerPart,
)
from rollcall.reward_service.workers.workers_config import WorkersConfig


class MathsConfig(Strict):
    """1 where the response's answer equals one in the metadata as mathematics; else 0."""

    kind: Literal["maths"] = "maths"
    answer_key: str = Field(
        default="answer", description="where the metadata have the answer, or a list: LaTeX or plain"
    )
    part: AnswerPart = Field(
        default=AnswerPart(),
        description="of the response; of the whole, what the last mark gives (a box, ####, <answer>), else the last "
        "formula in $, else the last number",
    )
    digits: int = Field(
        default=6, ge=1, le=30, description="decimals to which decimals must agree; below 1, significant digits"
    )
    workers: WorkersConfig = WorkersConfig()
