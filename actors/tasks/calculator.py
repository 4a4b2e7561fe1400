"""A sum that the model may work out with a tool that adds two numbers: the multi-turn task that is shipped.
It never evaluates what a model wrote: a tool call is two numbers, or none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.actors.tasks.arithmetic import WHOLE_SPACE, draw_problems, split_operands
from rollcall.actors.tasks.text_task import Judgement, Row, Segment, Split, TextStep
from rollcall.cluster.seeds import derive_seed

_TOOL_CALL = re.compile(r"c([0-9]{1,12})\+([0-9]{1,12})")
_ANSWER = re.compile(r"a([0-9]+)")


class CalculatorConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["calculator"] = Field(default="calculator", description="the task")
    digits: int = Field(default=2, ge=1, le=9, description="numbers are 0 to 10^digits - 1, without leading zeros")
    num_operands: int = Field(default=4, ge=2, le=8, description="numbers in a sum")
    min_tool_calls: int = Field(
        default=1, ge=0, description="a correct answer after fewer calls earns nothing: the tool is to be learnt"
    )
    max_turns: int | None = Field(
        default=None, ge=1, description="an episode without an answer by then ends, unrewarded (None: num_operands + 2)"
    )
    num_train_rows: int | None = Field(
        default=None,
        ge=1,
        description=f"sums to learn from (None: all that are not held out, and at most {WHOLE_SPACE:,})",
    )
    num_eval_rows: int = Field(default=500, ge=0, description="sums held out: never among those learnt from")
    seed: int = Field(default=0, ge=0, description="which sums are held out, and the order of the others")

    @property
    def turn_limit(self) -> int:
        return self.num_operands + 2 if self.max_turns is None else self.max_turns

    @model_validator(mode="after")
    def _demonstrations_are_rewarded(self) -> CalculatorConfig:
        if self.turn_limit < self.num_operands:
            raise ValueError(
                f"max_turns {self.max_turns}: a sum of {self.num_operands} numbers takes {self.num_operands} turns, "
                f"its answer included: give at least {self.num_operands}"
            )
        if self.min_tool_calls >= self.num_operands:
            raise ValueError(
                f"min_tool_calls {self.min_tool_calls}: a sum of {self.num_operands} numbers takes "
                f"{self.num_operands - 1}: give at most that"
            )
        return self


class CalculatorEnv:
    """Turns are "c12+34", answered by "46;", and "a46", which ends the episode. Any other turn ends it too."""

    def __init__(self, row: Row, *, min_tool_calls: int, max_turns: int) -> None:
        self._row = row
        self._min_tool_calls = min_tool_calls
        self._max_turns = max_turns
        self._num_tool_calls = 0
        self._num_turns = 0
        self._under_way = False

    def reset(self) -> str:
        self._num_tool_calls = self._num_turns = 0
        self._under_way = True
        return self._row.prompt

    def step(self, text: str) -> TextStep:
        """The reply to one turn; a tool call in the last turn that is allowed ends the episode without an answer.

        Raises:
          ValueError: when no episode is under way.
        """
        if not self._under_way:
            raise ValueError(f"step({text[:40]!r}): no episode is under way: call reset first")
        self._num_turns += 1
        turn = text.strip()
        if call := _TOOL_CALL.fullmatch(turn):
            self._num_tool_calls += 1
            if self._num_turns < self._max_turns:
                return self._reply(f"{int(call[1]) + int(call[2])};")
            return self._end(reward=0.0, correct=False, parsed=False)  # no answer was given
        answer = _ANSWER.fullmatch(turn)
        if answer is None:
            return self._end(reward=0.0, correct=False, parsed=False)
        correct = answer[1] == self._row.answer
        earned = correct and self._num_tool_calls >= self._min_tool_calls
        return self._end(reward=float(earned), correct=correct, parsed=True)

    def _reply(self, text: str) -> TextStep:
        return TextStep(text, 0.0, terminated=False, correct=False, parsed=True, components=self._components())

    def _end(self, *, reward: float, correct: bool, parsed: bool) -> TextStep:
        self._under_way = False
        return TextStep("", reward, terminated=True, correct=correct, parsed=parsed, components=self._components())

    def _components(self) -> dict[str, float]:
        return {"tool_calls": float(self._num_tool_calls)}


class Calculator:
    Config = CalculatorConfig
    chat = False

    def __init__(self, config: CalculatorConfig) -> None:
        self._config = config
        self._rows: dict[Split, Sequence[Row]] = {}

    def alphabet(self) -> str:
        """Every character of prompts, of well-formed turns and of the tool's replies."""
        return "".join(sorted("0123456789+=;ac"))

    def rows(self, split: Split) -> Sequence[Row]:
        if not self._rows:
            config = self._config
            train, held_out = draw_problems(
                10 ** (config.digits * config.num_operands),
                num_train=config.num_train_rows,
                num_eval=config.num_eval_rows,
                seed=derive_seed(config.seed, "calculator"),
                where="task calculator",
            )
            self._rows = {"train": [self._row(i) for i in train], "eval": [self._row(i) for i in held_out]}
        return self._rows[split]

    def judge(self, row: Row, completion: str) -> Judgement:
        """What the completion is worth as the only turn: no tool call came before it."""
        env = self.environment(row)
        env.reset()
        step = env.step(completion)
        return Judgement(step.reward, step.correct, step.parsed and step.terminated, step.components)

    def environment(self, row: Row) -> CalculatorEnv:
        return CalculatorEnv(row, min_tool_calls=self._config.min_tool_calls, max_turns=self._config.turn_limit)

    def demonstration(self, row: Row) -> Sequence[Segment]:
        """The sum from left to right, one tool call for each number after the first."""
        first, *others = [int(operand) for operand in row.prompt.removesuffix("=").split("+")]
        segments, total = [Segment(row.prompt, by_model=False)], first
        for operand in others:
            segments.append(Segment(f"c{total}+{operand}", by_model=True))
            total += operand
            segments.append(Segment(f"{total};", by_model=False))
        return [*segments, Segment(f"a{total}", by_model=True)]

    def _row(self, problem: int) -> Row:
        _, operands = split_operands(problem, digits=self._config.digits, num_operands=self._config.num_operands)
        return Row("+".join(map(str, operands)) + "=", str(sum(operands)), f"calculator {problem}")


TASK = Calculator
