"""Integer arithmetic of a few digits: "12+34=" and "46". The smallest task that a language model can learn.
The train and the eval problems are drawn here, apart from each other."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rollcall.actors.tasks.text_task import Judgement, Row, Segment, Split
from rollcall.cluster.errors import BadInput
from rollcall.cluster.seeds import derive_seed

WHOLE_SPACE = 20_000  # up to so many problems, all of them are used
_INTEGER = re.compile(r"-?[0-9]+")


class ArithmeticConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["arithmetic"] = Field(default="arithmetic", description="the task")
    digits: int = Field(default=2, ge=1, le=9, description="operands are 0 to 10^digits - 1, without leading zeros")
    operations: tuple[Literal["+", "-", "*"], ...] = Field(
        default=("+",), min_length=1, description="operators that occur; * binds closer than + and -"
    )
    num_operands: int = Field(default=2, ge=2, le=8, description="numbers in a problem")
    num_train_rows: int | None = Field(
        default=None,
        ge=1,
        description=f"problems to learn from (None: all that are not held out, and at most {WHOLE_SPACE:,})",
    )
    num_eval_rows: int = Field(default=500, ge=0, description="problems held out: never among those learnt from")
    seed: int = Field(default=0, ge=0, description="which problems are held out, and the order of the others")

    @field_validator("operations")
    @classmethod
    def _each_once(cls, operations: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(operations)) < len(operations):
            raise ValueError(f"an operator stands twice in {list(operations)}: name each once")
        return operations


class Arithmetic:
    """Held out are prompts: of "12+34=" and "34+12=" one may be learnt from and the other held out."""

    Config = ArithmeticConfig
    chat = False

    def __init__(self, config: ArithmeticConfig) -> None:
        self._config = config
        self._rows: dict[Split, Sequence[Row]] = {}

    def alphabet(self) -> str:
        """Every character of prompts and answers; the sign of an answer is among the operators."""
        return "".join(sorted({*"0123456789=", *self._config.operations}))

    def rows(self, split: Split) -> Sequence[Row]:
        if not self._rows:
            config = self._config
            num_problems = 10 ** (config.digits * config.num_operands) * len(config.operations) ** (
                config.num_operands - 1
            )
            train, held_out = draw_problems(
                num_problems,
                num_train=config.num_train_rows,
                num_eval=config.num_eval_rows,
                seed=derive_seed(config.seed, "arithmetic"),
                where="task arithmetic",
            )
            self._rows = {"train": [self._row(i) for i in train], "eval": [self._row(i) for i in held_out]}
        return self._rows[split]

    def judge(self, row: Row, completion: str) -> Judgement:
        text = completion.strip()
        correct = text == row.answer
        return Judgement(reward=float(correct), correct=correct, parsed=_INTEGER.fullmatch(text) is not None)

    def environment(self, row: Row) -> None:
        return None

    def demonstration(self, row: Row) -> Sequence[Segment]:
        return [Segment(row.prompt, by_model=False), Segment(row.answer, by_model=True)]

    def _row(self, problem: int) -> Row:
        """Problem i of the space: its operands, then its operators, are the digits of i."""
        config = self._config
        rest, operands = split_operands(problem, digits=config.digits, num_operands=config.num_operands)
        operators = []
        for _ in range(config.num_operands - 1):
            rest, choice = divmod(rest, len(config.operations))
            operators.append(config.operations[choice])
        text = str(operands[0])
        for operator, operand in zip(operators, operands[1:], strict=True):
            text += f"{operator}{operand}"
        return Row(f"{text}=", str(evaluate(operands, operators)), f"arithmetic {problem}")


def evaluate(operands: Sequence[int], operators: Sequence[str]) -> int:
    """operands[0] operators[0] operands[1] ...; * binds closer than + and -."""
    total, term = 0, operands[0]  # the sum of the finished terms, and the term that * may still extend
    for operator, operand in zip(operators, operands[1:], strict=True):
        if operator == "*":
            term *= operand
        else:
            total, term = total + term, operand if operator == "+" else -operand
    return total + term


def split_operands(problem: int, *, digits: int, num_operands: int) -> tuple[int, list[int]]:
    """The operands that a problem's number stands for, the last the least significant, and what is left of it."""
    operands = []
    for _ in range(num_operands):
        problem, operand = divmod(problem, 10**digits)
        operands.append(operand)
    return problem, operands[::-1]


def draw_problems(
    num_problems: int, *, num_train: int | None, num_eval: int, seed: int, where: str
) -> tuple[list[int], list[int]]:
    """Numbers below `num_problems`, in random order and without repetition: to learn from, and held out.

    The held-out ones depend on the seed and `num_eval` alone, not on how many are learnt from. With `num_train` None,
    all others are learnt from; of a space of more than 20,000 problems, that many.

    Raises:
      BadInput: naming `where`, when there are not so many problems.
    """
    if num_train is None and num_eval >= num_problems:
        raise BadInput(
            f"{where}: num_eval_rows is {num_eval:,}, and there are only {num_problems:,} problems, of which some must "
            "be left to learn from: lower num_eval_rows, or raise digits"
        )
    if num_train is not None and num_train + num_eval > num_problems:
        raise BadInput(
            f"{where}: num_train_rows + num_eval_rows is {num_train + num_eval:,}, and there are only "
            f"{num_problems:,} problems: lower one of them, or raise digits"
        )
    if num_train is None:
        num_train = min(num_problems - num_eval, WHOLE_SPACE)
    held_out = _sample(num_problems, num_eval, random.Random(derive_seed(seed, "eval")))
    # So many more are drawn that enough are left when the held-out ones are taken away.
    drawn = _sample(num_problems, num_train + num_eval, random.Random(derive_seed(seed, "train")))
    excluded = set(held_out)
    return [i for i in drawn if i not in excluded][:num_train], held_out


def _sample(population: int, size: int, rng: random.Random) -> list[int]:
    """`size` of range(population) in random order. Floyd's algorithm (Bentley and Floyd, 1987): random.sample cannot
    draw from ranges beyond 2**63."""
    chosen: dict[int, None] = {}
    for last in range(population - size, population):
        pick = rng.randrange(last + 1)
        chosen[last if pick in chosen else pick] = None
    result = list(chosen)
    rng.shuffle(result)
    return result


TASK = Arithmetic
