"""Completions of a task's prompts from a frozen policy: an actor of the production runs is given tickets, and what it
makes is scored while it goes on. Must never know what becomes of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from rollcall.actors.language.lm_actor import Failure, LMActor
from rollcall.actors.tasks.text_task import Row
from rollcall.actors.trajectory_scoring import TextScoring, TrajectoryScorer
from rollcall.cluster.errors import BadInput, RollcallError, Unscored
from rollcall.cluster.messages.attempt import Header, Produced, PromptPayload, Ticket
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.kinds.selection.completions import Answered, Completion

ATTEMPTS = 3  # at one prompt that its deadline passes
MOST_UNSCORED = 10  # prompts in a row of which nothing could be scored
TASK = "task"  # the scorer's version, where the task itself judges
_SCORING = 8  # prompts that are scored at once
_LOOK_S = 0.2
_LAST_S = 5.0  # for scores that were asked for when a stop was requested


@dataclass
class FrozenWeights:
    """A weights source that always has the same; none: the engine generates with the model that it was started with."""

    weights: Weights | None = None

    @property
    def epoch(self) -> int:
        return -1 if self.weights is None else self.weights.epoch

    @property
    def version(self) -> int:
        return -1 if self.weights is None else self.weights.version

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
        held = self.weights
        return held if held is not None and held.epoch == epoch and held.version > newer_than else None


class Sampler(Protocol):
    """Answers prompts."""

    unscored: list[str]

    def answers(self, rows: Sequence[int], *, stop_requested: Callable[[], bool]) -> Iterator[Answered]: ...


@dataclass
class ActorSampler:
    """One actor, its weights, and who scores what it makes."""

    actor: LMActor
    source: FrozenWeights
    rows: Sequence[Row]
    texts: TextScoring
    scorer: TrajectoryScorer | None  # none: the task
    num_samples: int  # of a prompt
    seed: int
    deadline_s: float  # of a prompt
    at_once: int  # prompts that are generated or scored side by side

    def __post_init__(self) -> None:
        chats = next((row for row in self.rows if row.messages), None)
        if chats is not None:
            raise BadInput(f"{chats.source}: a chat of several messages: selection keeps prompts of one text")
        self.unscored: list[str] = []  # why prompts have no answers here: the scorer has an error for them

    def answers(self, rows: Sequence[int], *, stop_requested: Callable[[], bool]) -> Iterator[Answered]:
        """Each of the rows once, as they are finished, until a stop is requested. A row's completions depend on its
        number and the seed, not on what else is answered. What the scorer has an error for is left out, and is in
        `unscored`.

        Raises:
          RollcallError: when a prompt is not finished in time, ATTEMPTS times; or MOST_UNSCORED in a row cannot be
            scored.
          RewardError: when the reward service does not answer within its patience.
        """
        self.unscored = []
        waiting = deque((row, 1) for row in rows)
        scored: set[Future[Answered]] = set()
        generating = fruitless = 0
        pool = ThreadPoolExecutor(_SCORING, thread_name_prefix="score")
        try:
            while (waiting or generating or scored) and not stop_requested():
                while waiting and generating + len(scored) < self.at_once:
                    self.actor.submit([self._ticket(*waiting.popleft())])
                    generating += 1
                for outcome in self.actor.advance() if generating else ():
                    generating -= 1
                    if isinstance(outcome, Failure):
                        waiting.append(self._again(outcome))
                    else:
                        scored.add(pool.submit(self._answered, *outcome))
                done, _ = wait(scored, timeout=0 if generating else _LOOK_S, return_when=FIRST_COMPLETED)
                scored -= done
                for future in done:
                    try:
                        yield future.result()
                        fruitless = 0
                    except Unscored as error:
                        self.unscored.append(_first_line(error))
                        fruitless = fruitless + 1 if error.fruitless else 0
                        if fruitless >= MOST_UNSCORED:
                            said = f"{fruitless} prompts in a row have no score: {_first_line(error)}"
                            raise RollcallError(said) from None
            for future in wait(scored, timeout=_LAST_S).done:  # of a stop: what was asked already is not lost
                if future.exception() is None:
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ticket(self, row: int, attempt: int) -> Ticket:
        return Ticket(
            Header(row, attempt, self.source.epoch),
            seed=derive_seed(self.seed, "select", row),
            min_policy_version=self.source.version,
            lane=0,
            payload=PromptPayload(row, 0, self.num_samples),
            deadline_s=self.deadline_s,
        )

    def _again(self, failure: Failure) -> tuple[int, int]:
        header = failure.ticket.header
        if header.attempt >= ATTEMPTS:
            raise RollcallError(
                f"{self.rows[header.ticket_id].source}: {failure.detail}, {ATTEMPTS} times: raise "
                "actors.ticket_deadline_s, or lower actors.sampling.max_tokens"
            )
        return header.ticket_id, header.attempt + 1

    def _answered(self, produced: Produced, trajectory: LMTrajectory) -> Answered:
        if self.scorer is not None:
            produced, trajectory = self.scorer.score(produced, trajectory)
        row = self.rows[trajectory.row]
        completions = [
            Completion(
                text=item.response or "",
                score=float(sample.reward),
                num_tokens=sample.num_tokens,
                finish_reason=cast(Literal["stop", "length"], reason),
                components={name: float(value) for name, value in sample.reward_components.items()},
            )
            for item, sample, reason in zip(
                self.texts.items(trajectory), produced.samples, trajectory.finish_reasons, strict=True
            )
        ]
        version = trajectory.reward_model_version if self.scorer is not None else TASK
        return Answered(
            trajectory.row, row.source, row.prompt, tuple(completions), version, trajectory.min_policy_version
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
