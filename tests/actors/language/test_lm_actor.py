"""The language actor on a real engine: tickets in, whole groups of samples out, under weights that come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.actors.language.conversations import Conversations
from rollcall.actors.language.lm_actor import Failure, LMActor, Outcome
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.arithmetic import Arithmetic
from rollcall.actors.tasks.text_task import Row
from rollcall.cluster.messages.arrays import named_arrays
from rollcall.cluster.messages.attempt import Produced, Ticket
from rollcall.cluster.messages.experience import LMTrajectory

EOS = 1
MAX_TOKENS = 40
TOLERANCE = 1e-4  # of a log-probability in float32
MakeTicket = Callable[..., Ticket]


@pytest.fixture
def actor(engine: VllmEngine, arithmetic: Arithmetic, codec: TextCodec, source: Any) -> LMActor:
    return LMActor(
        actor_id="lm-0",
        engine=engine,
        conversations=Conversations(engine, arithmetic, codec, max_tokens=MAX_TOKENS),
        rows=arithmetic.rows("train"),
        weights_source=source,
    )


def produced(outcomes: Sequence[Outcome]) -> list[tuple[Produced, LMTrajectory]]:
    assert not [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    return [outcome for outcome in outcomes if not isinstance(outcome, Failure)]


def finish(actor: LMActor) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while not actor.is_idle:
        outcomes += actor.advance()
    return outcomes


def samples_of(trajectory: LMTrajectory) -> list[tuple[list[int], list[bool]]]:
    """(tokens, which were sampled) of each."""
    bounds = trajectory.sample_offsets.tolist()
    return [(trajectory.token_ids[a:b].tolist(), trajectory.loss_mask[a:b].tolist()) for a, b in pairwise(bounds)]


def assert_spans_cover_what_was_sampled(trajectory: LMTrajectory) -> None:
    covered = np.zeros(len(trajectory.token_ids), int)
    for begin, end, _ in trajectory.version_spans.tolist():
        covered[begin:end] += 1
    assert covered.tolist() == trajectory.loss_mask.astype(int).tolist()


# What a ticket becomes.


def test_a_ticket_becomes_one_record_of_a_whole_group(
    actor: LMActor, source: Any, trainer: Any, make_ticket: MakeTicket, arithmetic: Arithmetic, codec: TextCodec
) -> None:
    source.publish(trainer.weights(3))
    ((summary, trajectory),) = produced(actor.produce_all([make_ticket(7, num_samples=6, row=11, attempt=2)]))
    row = arithmetic.rows("train")[11]
    prompt = codec.encode(row.prompt)
    assert (trajectory.header.policy_id, trajectory.header.epoch, trajectory.header.key) == ("policy", 1, (7, 2))
    assert (trajectory.header.actor_id, trajectory.row, len(trajectory.rewards)) == ("lm-0", 11, 6)
    assert trajectory.sample_offsets[-1] == len(trajectory.token_ids) == len(trajectory.loss_mask)
    for index, (tokens, sampled) in enumerate(samples_of(trajectory)):
        assert tokens[: len(prompt)] == prompt
        assert sampled == [False] * len(prompt) + [True] * (len(tokens) - len(prompt))
        completion = tokens[len(prompt) :]
        judgement = arithmetic.judge(row, codec.decode(completion))
        assert trajectory.rewards[index] == judgement.reward
        ended = completion[-1] == EOS
        assert trajectory.finish_reasons[index] == ("stop" if ended else "length")
        assert ended or len(completion) == MAX_TOKENS
        assert summary.samples[index].num_tokens == len(completion)
        assert summary.samples[index].truncated == (not ended)
        assert summary.samples[index].parsed == judgement.parsed
    assert_spans_cover_what_was_sampled(trajectory)
    assert {version for _, _, version in trajectory.version_spans.tolist()} == {3}
    assert (trajectory.tokens.behaviour_logprobs[~trajectory.loss_mask] == 0).all()
    said = trainer.says(samples_of(trajectory))
    difference = np.abs(trajectory.tokens.behaviour_logprobs[trajectory.loss_mask] - said.logprobs.numpy())
    assert difference[said.edge.numpy() > 1e-5].max() < TOLERANCE


def test_the_summary_says_what_the_record_holds(
    actor: LMActor, source: Any, trainer: Any, make_ticket: MakeTicket, arithmetic: Arithmetic, codec: TextCodec
) -> None:
    source.publish(trainer.weights(3))
    ((summary, trajectory),) = produced(actor.produce_all([make_ticket(7)]))
    assert (summary.header.key, summary.header.epoch, summary.header.actor_id) == ((7, 1), 1, "lm-0")
    assert summary.num_tokens == int(trajectory.loss_mask.sum())
    assert summary.version_tokens == ((3, summary.num_tokens),)
    assert summary.min_policy_version == trajectory.min_policy_version == 3
    assert summary.size_bytes == sum(array.nbytes for _, array in named_arrays(trajectory)) > 0
    assert summary.timing.act_s > summary.timing.apply_weights_s > 0
    first, *others = summary.samples  # one sample is shown to people, the others are numbers
    row, (tokens, _) = arithmetic.rows("train")[0], samples_of(trajectory)[0]
    assert (first.prompt, first.text) == (row.prompt, codec.decode(tokens[len(codec.encode(row.prompt)) :]))
    assert all((sample.prompt, sample.text) == ("", "") for sample in others)


def test_the_samples_of_a_ticket_are_drawn_apart(
    actor: LMActor, source: Any, trainer: Any, make_ticket: MakeTicket
) -> None:
    source.publish(trainer.weights(0))
    outcomes = produced(actor.produce_all([make_ticket(0, num_samples=8), make_ticket(1, num_samples=8)]))
    completions = {tuple(tokens) for _, trajectory in outcomes for tokens, _ in samples_of(trajectory)}
    assert len(completions) > 12  # 16 samples of one prompt; short ones may be equal by chance


def test_a_ticket_tried_again_alone_gives_the_same_tokens(
    actor: LMActor, source: Any, trainer: Any, make_ticket: MakeTicket
) -> None:
    source.publish(trainer.weights(0))
    (_, first), (_, again), (_, other) = (
        *produced(actor.produce_all([make_ticket(4)])),
        *produced(actor.produce_all([make_ticket(4, attempt=2)])),
        *produced(actor.produce_all([make_ticket(5)])),
    )
    assert first.digest() == again.digest()
    assert first.token_ids.tolist() != other.token_ids.tolist()


# Weights.


def test_a_ticket_waits_for_weights_that_are_new_enough(
    actor: LMActor, source: Any, trainer: Any, make_ticket: MakeTicket
) -> None:
    source.publish(trainer.weights(2))
    actor.submit([make_ticket(0, min_policy_version=3)])
    assert [actor.advance() for _ in range(3)] == [[], [], []]
    assert not actor.is_idle
    assert actor.doing() == "0 tickets generating, 1 waiting for weights newer than version 2"
    trainer.move()
    source.publish(trainer.weights(3))
    actor.advance()
    assert actor.doing() == "1 tickets generating, 0 waiting for weights newer than version 3"
    ((summary, _),) = produced(finish(actor))
    assert summary.min_policy_version == 3
    assert actor.is_idle


def test_a_ticket_whose_version_is_there_does_not_wait_for_one_whose_is_not(
    actor: LMActor, source: Any, trainer: Any, make_ticket: MakeTicket
) -> None:
    source.publish(trainer.weights(2))
    actor.submit([make_ticket(0, min_policy_version=5), make_ticket(1, min_policy_version=2)])
    outcomes: list[Outcome] = []
    while not outcomes:
        outcomes = actor.advance()
    assert [summary.header.ticket_id for summary, _ in produced(outcomes)] == [1]
    source.publish(trainer.weights(5))
    assert [summary.header.ticket_id for summary, _ in produced(finish(actor))] == [0]


def test_weights_that_come_while_generating_are_taken_between_two_steps(
    actor: LMActor, source: Any, trainer: Any, make_ticket: MakeTicket
) -> None:
    source.publish(trainer.weights(0))
    actor.submit([make_ticket(0, num_samples=16)])
    for version in (1, 2):
        for _ in range(4):
            assert actor.advance() == []
        trainer.move()
        source.publish(trainer.weights(version))
    ((summary, trajectory),) = produced(finish(actor))
    assert_spans_cover_what_was_sampled(trajectory)
    assert summary.min_policy_version == 0
    versions = trajectory.token_versions()
    for begin, end in zip(trajectory.sample_offsets[:-1], trajectory.sample_offsets[1:], strict=True):
        mask = trajectory.loss_mask[begin:end]
        length = int(mask.sum())
        # Four tokens under each of the first two versions, one a step, and the rest under the last.
        assert versions[begin:end][mask].tolist() == ([0] * 4 + [1] * 4 + [2] * MAX_TOKENS)[:length]
    counted = {version: int((versions == version).sum()) for version in (0, 1, 2)}
    assert dict(summary.version_tokens) == counted
    assert min(counted.values()) > 0


# Tickets that are given up.


def test_a_ticket_past_its_deadline_is_given_up_and_its_requests_are_aborted(
    actor: LMActor, engine: VllmEngine, source: Any, trainer: Any, make_ticket: MakeTicket
) -> None:
    source.publish(trainer.weights(0))
    late, good = make_ticket(0, num_samples=16, deadline_s=1.0), make_ticket(1)
    actor.submit([late, good])
    assert actor.advance() == []
    time.sleep(1.05)
    failures = [outcome for outcome in actor.advance() if isinstance(outcome, Failure)]
    assert [(failure.ticket, failure.reason) for failure in failures] == [(late, "deadline")]
    assert failures[0].detail.startswith("lm-0: ")
    assert "of 16 samples were finished within 1 s" in failures[0].detail
    assert engine.num_unfinished <= 4
    assert [summary.header.ticket_id for summary, _ in produced(finish(actor))] == [1]
    assert engine.num_unfinished == 0


def test_a_ticket_for_which_no_weights_come_is_given_up_and_says_which_it_waited_for(
    actor: LMActor, source: Any, trainer: Any, make_ticket: MakeTicket
) -> None:
    source.publish(trainer.weights(2))
    actor.submit([make_ticket(0, min_policy_version=9, deadline_s=0.01)])
    (failure,) = finish(actor)
    assert isinstance(failure, Failure)
    assert failure.reason == "weights_timeout"
    assert "no weights of version 9 or newer (epoch 1)" in failure.detail
    assert "the newest seen is 2" in failure.detail


def test_a_newer_epoch_ends_what_was_under_way_before_it(
    actor: LMActor, engine: VllmEngine, source: Any, trainer: Any, make_ticket: MakeTicket
) -> None:
    source.publish(trainer.weights(6))
    generating, waiting = make_ticket(0), make_ticket(1, min_policy_version=8)
    actor.submit([generating, waiting])
    actor.advance()
    assert engine.num_unfinished > 0
    source.ended.add(1)
    source.publish(trainer.weights(2, epoch=2))  # from a checkpoint: versions are lower than they were
    new = make_ticket(0, epoch=2, attempt=2, min_policy_version=2)
    actor.submit([new])
    outcomes = finish(actor)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert [(item.ticket, item.reason) for item in failures] == [
        (generating, "stale_epoch"),
        (waiting, "stale_epoch"),
    ]
    assert "epoch 2 is under way" in failures[0].detail
    ((summary, trajectory),) = produced([item for item in outcomes if not isinstance(item, Failure)])
    assert (summary.header.epoch, summary.header.attempt, trajectory.header.epoch) == (2, 2, 2)
    assert {version for _, _, version in trajectory.version_spans.tolist()} == {2}
    assert engine.num_unfinished == 0


@pytest.mark.parametrize("generating", [True, False])
def test_an_epoch_that_ends_before_a_newer_ticket_comes_costs_the_tickets_and_not_the_actor(
    actor: LMActor, source: Any, trainer: Any, make_ticket: MakeTicket, generating: bool
) -> None:
    source.publish(trainer.weights(6))
    ticket = make_ticket(0, min_policy_version=6 if generating else 7)
    actor.submit([ticket])
    actor.advance()
    source.ended.add(1)
    (failure,) = finish(actor)
    assert isinstance(failure, Failure)
    assert (failure.ticket, failure.reason) == (ticket, "stale_epoch")


def test_a_ticket_of_an_epoch_older_than_the_weights_is_given_up_at_once(
    actor: LMActor, source: Any, trainer: Any, make_ticket: MakeTicket
) -> None:
    source.publish(trainer.weights(2, epoch=2))
    produced(actor.produce_all([make_ticket(0, epoch=2)]))
    source.ended.add(1)
    late = make_ticket(0, epoch=1)
    (failure,) = actor.produce_all([late])
    assert isinstance(failure, Failure)
    assert (failure.ticket, failure.reason) == (late, "stale_epoch")


def test_a_row_that_fills_the_context_is_wrong_and_unparsed_and_nothing_is_generated(
    engine: VllmEngine, arithmetic: Arithmetic, codec: TextCodec
) -> None:
    conversations = Conversations(engine, arithmetic, codec, max_tokens=MAX_TOKENS)
    conversations.begin(0, Row("1" * engine.max_model_len, "", "too long"), seed=0)
    assert (conversations.num_running, engine.num_unfinished) == (1, 0)
    (sample,) = conversations.advance()
    assert sample.judgement is not None
    assert (sample.judgement.correct, sample.judgement.parsed, sample.finish_reason) == (False, False, "length")
    assert (conversations.num_running, sample.num_sampled) == (0, 0)


@pytest.mark.parametrize(("share", "begun"), [(1.0, 6), (0.125, 0), (0.5, 2)])
def test_while_an_older_batch_is_finished_newer_tickets_wait_or_begin_in_portions(
    actor: LMActor,
    engine: VllmEngine,
    source: Any,
    trainer: Any,
    make_ticket: MakeTicket,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    begun: int,
) -> None:
    """Of 64 slots 16 are busy with the older batch; a portion is an eighth of the slots: two tickets of 4 samples."""
    monkeypatch.setattr(engine, "admit_below", share)
    source.publish(trainer.weights(1))
    actor.submit([make_ticket(number) for number in range(4)])
    outcomes = actor.advance()
    assert engine.num_unfinished == 16
    source.publish(trainer.weights(2))
    actor.submit([make_ticket(number, min_policy_version=1) for number in range(4, 10)])
    outcomes += actor.advance()
    assert actor.doing().startswith(f"{4 + begun - len(outcomes)} tickets generating, {6 - begun} waiting")
    while not actor.is_idle:
        outcomes += actor.advance()
    assert {summary.header.ticket_id for summary, _ in produced(outcomes)} == set(range(10))
