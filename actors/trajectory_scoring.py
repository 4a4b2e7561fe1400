"""Trajectories to the reward service and back: what of them is to be scored, and where the scores go. Every score is
the service's own; where there is none, the trajectory is not scored at all."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from rollcall.actors.control.segments import SegmentsOf, ToEnv, episode_stretches
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.text_task import Row, Task, opening_of
from rollcall.cluster.errors import Unscored
from rollcall.cluster.messages.attempt import Produced, Scoring
from rollcall.cluster.messages.experience import GymTrajectory, LMTrajectory
from rollcall.reward_service.protocol import ItemResult, Message, ScoreItem, ScoreResponse


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


class ItemMapping(Protocol):
    """From a trajectory to what of it is scored, and back; of control or of language."""

    def items(self, trajectory: Any) -> list[ScoreItem]: ...
    def rescored(
        self, produced: Produced, trajectory: Any, results: Sequence[ItemResult], version: str
    ) -> tuple[Produced, Any, float]:
        """Both records with the scores in place of their rewards, and the mean reward."""
        ...


class TrajectoryScorer:
    """Gives trajectories the service's rewards. May be called from several threads."""

    def __init__(self, client: RewardClient, mapping: ItemMapping, *, model: str, patience_s: float) -> None:
        self._client = client
        self._mapping = mapping
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
        items = self._mapping.items(trajectory)
        if not items:  # no step of it is experience: nothing to ask about, and nothing to learn from
            nothing, rewarded, _ = self._mapping.rescored(produced, trajectory, (), "")
            return nothing, rewarded
        response = self._client.score_group(items, model=self._model, deadline_s=self._patience_s)
        errors = [(result.id, result.error) for result in response.results if result.error is not None]
        if errors:
            item, error = errors[0]
            fruitless = len(errors) == len(response.results)
            raise Unscored(f"item {item}: {error.kind}: {error.message}", fruitless=fruitless)
        version = response.model_version
        scored, rewarded, mean = self._mapping.rescored(produced, trajectory, response.results, version)
        score_s = time.perf_counter() - began
        scoring = Scoring(version, mean, score_s, components_per_step(response.results))
        return replace(scored, scoring=scoring), rewarded


def components_per_step(results: Sequence[ItemResult]) -> dict[str, float]:
    """What the rewards of segments were made of: means over all their steps. Of texts there are none: each sample has
    its own."""
    sums: dict[str, float] = {}
    for result in results:
        for name, mean in result.components.items() if result.step_scores else ():
            sums[name] = sums.get(name, 0.0) + mean * len(result.step_scores or ())
    num_steps = sum(len(result.step_scores or ()) for result in results)
    return {name: total / num_steps for name, total in sums.items()}


def answer_metadata(row: Row) -> dict[str, Any]:
    """What a scorer is told of a row: its line as it is in the file, and the answer where no column is called so."""
    return {"answer": row.answer, **row.columns}


def asked_of(task: Task, row: Row) -> str | tuple[Message, ...]:
    """What a row asks, as everybody is told who judges responses to it: a chat task's prompt is a user's message."""
    opening = opening_of(task, row)
    return as_asked(task, opening) if isinstance(opening, str) else tuple(map(_as_message, opening))


def _as_message(message: Mapping[str, Any]) -> Message:
    """Of a row's: what was called is told as JSON."""
    content, calls = message.get("content") or "", message.get("tool_calls")
    told = "\n".join(filter(None, (content, json.dumps(calls) if calls else "")))
    role: Any = "system" if message["role"] == "developer" else message["role"]
    return Message(role=role, content=told)


def as_asked(task: Task, prompt: str) -> str | tuple[Message, ...]:
    return (Message(role="user", content=prompt),) if task.chat else prompt


class TextScoring:
    """One item for each sample of a prompt: the row's prompt (or the conversation's opening) and all that followed."""

    def __init__(self, task: Task, codec: TextCodec, rows: Sequence[Row]) -> None:
        self._task = task
        self._codec = codec
        self._rows = rows

    def items(self, trajectory: LMTrajectory) -> list[ScoreItem]:
        row = self._rows[trajectory.row]
        asked = asked_of(self._task, row)
        question: dict[str, Any] = {"prompt" if isinstance(asked, str) else "messages": asked}
        metadata = answer_metadata(row)
        return [
            ScoreItem(id=f"{trajectory.header.ticket_id}.{index}", response=text, metadata=metadata, **question)
            for index, text in enumerate(responses_of(trajectory, self._codec))
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
            trajectory,
            rewards=np.array(scores, np.float32),
            tokens=replace(trajectory.tokens, turn_rewards=None),
            reward_model_version=version,
        )
        return replace(produced, samples=samples), rewarded, float(np.mean(scores))


def responses_of(trajectory: LMTrajectory, codec: TextCodec) -> list[str]:
    """All that followed the prompt, of each sample."""
    offsets = trajectory.sample_offsets.tolist()
    texts = []
    for begin, end in itertools.pairwise(offsets):
        sampled = np.flatnonzero(trajectory.loss_mask[begin:end])
        first = int(sampled[0]) if len(sampled) else end - begin
        texts.append(codec.decode(trajectory.token_ids[begin + first : end].tolist()))
    return texts


class SegmentScoring:
    """One item for each stretch of an episode that a unit holds: no segment crosses an episode's end. The scores of the
    steps become the rewards; a step that is no experience is not scored, and has none."""

    def __init__(self, to_env: ToEnv) -> None:
        """`to_env`: the very function by which the actors' policy makes its env's actions of what it samples."""
        self._to_env = to_env

    def items(self, trajectory: GymTrajectory) -> list[ScoreItem]:
        segments = SegmentsOf(trajectory, self._to_env)
        ticket = trajectory.header.ticket_id
        return [
            ScoreItem(id=f"{ticket}.{stretch.env}.{stretch.begin}", segment=segments.with_end(stretch))
            for stretch in episode_stretches(trajectory)
        ]

    def rescored(
        self, produced: Produced, trajectory: GymTrajectory, results: Sequence[ItemResult], version: str
    ) -> tuple[Produced, GymTrajectory, float]:
        rewards = np.zeros(trajectory.unroll.shape, np.float32)
        for stretch, result in zip(episode_stretches(trajectory), results, strict=True):
            if result.step_scores is None:
                raise Unscored(f"item {result.id}: the scorer gave a segment one score, and none for each of its steps")
            wanted = stretch.end - stretch.begin
            if len(result.step_scores) != wanted:
                raise Unscored(f"item {result.id}: the scorer gave {len(result.step_scores)} scores for {wanted} steps")
            rewards[stretch.steps, stretch.env] = result.step_scores
        mean = float(rewards.sum() / max(1, trajectory.num_steps))
        return (
            produced,
            replace(trajectory, unroll=trajectory.unroll.with_rewards(rewards), reward_model_version=version),
            mean,
        )
