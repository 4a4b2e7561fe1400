"""Trajectories to the reward service and back: what of them is to be scored, and where the scores go. Every score is
the service's own; where there is none, the trajectory is not scored at all. Must never know how a score is made."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from rollcall.actors.text_codec import TextCodec
from rollcall.actors.text_task import Row, Task
from rollcall.cluster.errors import Unscored
from rollcall.cluster.messages import GymTrajectory, LMTrajectory, Produced, Scoring
from rollcall.reward_service.protocol import ArrayField, ItemResult, Message, ScoreItem, ScoreResponse, Segment


@dataclass(frozen=True)
class RewardEndpoint:
    """Where a run's trajectories are scored. Travels to the scoring process; never to a file."""

    url: str
    token: str = field(repr=False)
    model: str
    patience_s: float  # with a service that is away or full


class RewardClient(Protocol):
    """reward_service.client.RewardClient, as far as it is needed here."""

    def score_group(self, items: Sequence[ScoreItem], *, model: str | None, deadline_s: float) -> ScoreResponse:
        """Scores of all items by one version of the model. Waits for a service that is away, until the deadline."""
        ...


class Kind(Protocol):
    """What scoring differs in between control and language."""

    def items(self, trajectory: Any) -> list[ScoreItem]: ...
    def rescored(
        self, produced: Produced, trajectory: Any, results: Sequence[ItemResult], version: str
    ) -> tuple[Produced, Any, float]:
        """Both records with the scores in place of their rewards, and the mean reward."""
        ...


class TrajectoryScorer:
    """Gives trajectories the service's rewards. May be called from several threads."""

    def __init__(self, client: RewardClient, kind: Kind, *, model: str, patience_s: float) -> None:
        self._client = client
        self._kind = kind
        self._model = model
        self._patience_s = patience_s

    def score(self, produced: Produced, trajectory: Any) -> tuple[Produced, Any]:
        """New records, scored.

        Raises:
          Unscored: when the service has an error for any item.
          VersionsMixed: when its model was swapped again and again.
          RewardError: when it does not answer within the patience, or refuses.
        """
        began = time.perf_counter()
        items = self._kind.items(trajectory)
        response = self._client.score_group(items, model=self._model, deadline_s=self._patience_s)
        errors = [(result.id, result.error) for result in response.results if result.error is not None]
        if errors:
            item, error = errors[0]
            fruitless = len(errors) == len(response.results)
            raise Unscored(f"item {item}: {error.kind}: {error.message}", fruitless=fruitless)
        version = response.model_version
        scored, rewarded, mean = self._kind.rescored(produced, trajectory, response.results, version)
        scoring = Scoring(version, mean, time.perf_counter() - began)
        return replace(scored, scoring=scoring), rewarded


def answer_metadata(row: Row) -> dict[str, Any]:
    """What a scorer is told of a row: its line as it is in the file, and the answer where no column is called so."""
    return {"answer": row.answer, **row.columns}


class TextScoring:
    """One item for each sample of a prompt: the row's prompt (or the conversation's opening) and all that followed."""

    def __init__(self, task: Task, codec: TextCodec, rows: Sequence[Row]) -> None:
        self._task = task
        self._codec = codec
        self._rows = rows

    def items(self, trajectory: LMTrajectory) -> list[ScoreItem]:
        row = self._rows[trajectory.row]
        env = self._task.environment(row)
        opening = row.prompt if env is None else env.reset()
        question: dict[str, Any] = {"prompt": opening}
        if self._task.chat:
            question = {"messages": (Message(role="user", content=opening),)}
        metadata = answer_metadata(row)
        return [
            ScoreItem(id=f"{trajectory.ticket_id}.{index}", response=text, metadata=metadata, **question)
            for index, text in enumerate(self._responses(trajectory))
        ]

    def rescored(
        self, produced: Produced, trajectory: LMTrajectory, results: Sequence[ItemResult], version: str
    ) -> tuple[Produced, LMTrajectory, float]:
        scores = [float(result.score or 0.0) for result in results]  # none is None: errors were raised before
        samples = tuple(
            replace(
                sample,
                reward=score,
                # What the task itself would have given stays to be seen: nobody learns from it.
                reward_components={**sample.reward_components, **result.components, "task": sample.reward},
            )
            for sample, score, result in zip(produced.samples, scores, results, strict=True)
        )
        rewarded = replace(
            trajectory, rewards=np.array(scores, np.float32), turn_rewards=None, reward_model_version=version
        )
        return replace(produced, samples=samples), rewarded, float(np.mean(scores))

    def _responses(self, trajectory: LMTrajectory) -> list[str]:
        offsets = trajectory.sample_offsets.tolist()
        texts = []
        for begin, end in itertools.pairwise(offsets):
            sampled = np.flatnonzero(trajectory.loss_mask[begin:end])
            first = int(sampled[0]) if len(sampled) else end - begin
            texts.append(self._codec.decode(trajectory.token_ids[begin + first : end].tolist()))
        return texts


class SegmentScoring:
    """One item for each env of a unit: its steps as one segment, whatever episodes they are of. The scores of the steps
    become the rewards."""

    def items(self, trajectory: GymTrajectory) -> list[ScoreItem]:
        observations = trajectory.observations["observation"]
        return [
            ScoreItem(
                id=f"{trajectory.ticket_id}.{column}",
                segment=Segment(
                    observations=ArrayField.of(observations[:, column]),
                    actions=ArrayField.of(trajectory.actions[:, column]),
                ),
            )
            for column in range(trajectory.actions.shape[1])
        ]

    def rescored(
        self, produced: Produced, trajectory: GymTrajectory, results: Sequence[ItemResult], version: str
    ) -> tuple[Produced, GymTrajectory, float]:
        columns = []
        for result in results:
            if result.step_scores is None:
                raise Unscored(f"item {result.id}: the scorer gave a segment one score, and none for each of its steps")
            columns.append(np.array(result.step_scores, np.float32))
        rewards = np.where(trajectory.mask, np.stack(columns, axis=1), np.float32(0))
        mean = float(rewards.sum() / max(1, int(trajectory.mask.sum())))
        return produced, replace(trajectory, rewards=rewards, reward_model_version=version), mean
