"""What is asked of a learner for one step, and what learner and evaluator report of what they did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StepOrder:
    """One learner step, as the driver asks for it."""

    step: int  # v: batches consumed before; the weights that come out have version step + 1
    epoch: int
    progress: float  # fraction of the run consumed before this step, in [0, 1]
    checkpoint_directory: Path | None = None  # where to write the learner's state after the step


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a learner step reports beside the weights."""

    step: int
    epoch: int
    skipped: bool  # the loss or a gradient was not finite: the parameters are those from before
    update_s: float
    wait_s: float  # seconds the learner stood idle before this step
    learning_rate: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    interrupted: bool = False  # taken back before its end: all is as it was before, and nothing else is told


@dataclass(frozen=True, slots=True)
class EvalReport:
    """How a policy was judged: on whole episodes in the order of their seeds, or on held-out rows in their order."""

    unit: str  # what `mean` is of: "return", "exact match" (the share of rows answered correctly), "reward"
    mean: float
    std: float  # the population's
    n: int
    returns: tuple[float, ...]  # [n]: undiscounted; of a row the task's own reward, whoever scores what is learnt from
    lengths: tuple[int, ...]  # [n]: env steps, or tokens that the policy sampled
    policy_version: int
    # Of the n episodes, those without an end: their returns are of eval.max_steps_per_episode steps. None: rows end.
    unfinished: int | None = None
    unparsed: int | None = None  # of the n rows, those from which no answer could be read. None: episodes have none
