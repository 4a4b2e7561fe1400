"""A user's own task, in a file beside the run: problems of arithmetic, and a reward that an untrained model has some
of, so that every batch changes the weights."""

from __future__ import annotations

from rollcall.actors.tasks.arithmetic import Arithmetic, ArithmeticConfig
from rollcall.actors.tasks.text_task import Judgement, Row


class LongAnswersConfig(ArithmeticConfig):
    name: str = "own_task:LongAnswers"  # type: ignore[assignment]


class LongAnswers(Arithmetic):
    Config = LongAnswersConfig

    def judge(self, row: Row, completion: str) -> Judgement:
        return Judgement(reward=len(completion) / 10, correct=completion == row.answer, parsed=True)
