"""Samples of one turn and of many: the tokens that stand are those that were sampled, whoever samples them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rollcall.actors.engine.requests import Completion
from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.actors.language.conversations import Conversations, Sample, opening
from rollcall.actors.language.lm_actor import Failure, LMActor
from rollcall.actors.language.lm_eval_config import LMEvalConfig
from rollcall.actors.language.lm_evaluation import LMEvaluator
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.arithmetic import Arithmetic
from rollcall.actors.tasks.calculator import Calculator
from rollcall.actors.tasks.text_task import Judgement, Row, Segment, Split, TextStep
from rollcall.cluster.messages.weights import Weights

EOS = 1
MAX_TOKENS = 12
TOLERANCE = 1e-4  # of a log-probability in float32


@dataclass
class ScriptedEngine:
    """Says what it was told to, one turn a request, one request a step; keeps what it was asked."""

    codec: TextCodec
    script: list[str]  # a turn that ends with "..." was cut by its length
    max_model_len: int = 64
    version: int = -1
    waiting: list[str] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    max_tokens: list[int] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting)

    def load(self, weights: Weights) -> None:
        self.version = weights.version

    def add(
        self, request_id: str, prompt: Sequence[int], *, seed: int | None, max_tokens: int, greedy: bool = False
    ) -> None:
        self.waiting.append(request_id)
        self.prompts.append(list(prompt))
        self.max_tokens.append(max_tokens)
        self.seeds.append(seed)

    def step(self) -> list[Completion]:
        if not self.waiting:
            return []
        turn = self.script.pop(0)
        cut = turn.endswith("...")
        tokens = self.codec.encode(turn.removesuffix("...")) + [EOS] * (not cut)
        logprobs = -np.arange(1, len(tokens) + 1, dtype=np.float32)
        return [
            Completion(
                request_id=self.waiting.pop(0),
                token_ids=np.array(tokens, np.int32),
                logprobs=logprobs,
                version_spans=((0, len(tokens), self.version),),
                finish_reason="length" if cut else "stop",
            )
        ]

    def abort(self, request_ids: Sequence[str]) -> None:
        self.waiting = [name for name in self.waiting if name not in request_ids]


@dataclass
class Recording:
    """The real engine, and all that was said to it and by it, in order of the requests."""

    engine: VllmEngine
    prompts: dict[str, list[int]] = field(default_factory=dict)
    completions: dict[str, Completion] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def add(self, request_id: str, prompt: Sequence[int], **settings: Any) -> None:
        self.prompts[request_id] = list(prompt)
        self.engine.add(request_id, prompt, **settings)

    def step(self) -> list[Completion]:
        finished = self.engine.step()
        self.completions |= {item.request_id: item for item in finished}
        return finished


class Chatter:
    """An env that answers whatever is said, for three turns: even a model that knows nothing has a conversation."""

    def __init__(self) -> None:
        self.turns: list[str] = []

    def reset(self) -> str:
        return "1+2="

    def step(self, text: str) -> TextStep:
        self.turns.append(text)
        ends = len(self.turns) == 3
        return TextStep("" if ends else f"{len(self.turns)};", 0.25, terminated=ends, correct=ends, parsed=True)


class ChatterTask:
    chat = False

    def __init__(self, config: Any = None) -> None:
        self.envs: list[Chatter] = []

    def rows(self, split: Split) -> Sequence[Row]:
        return [Row("1+2=", "", "chatter 0")]

    def judge(self, row: Row, completion: str) -> Judgement:
        raise AssertionError("an env judges its own conversations")

    def environment(self, row: Row) -> Chatter:
        self.envs.append(Chatter())
        return self.envs[-1]

    def demonstration(self, row: Row) -> Sequence[Segment]:
        return []


def run_all(conversations: Conversations) -> list[Sample]:
    finished: list[Sample] = []
    while conversations.num_running:
        finished += conversations.advance()
    return finished


def talk(codec: TextCodec, task: Any, row: Row, script: list[str], **settings: Any) -> tuple[Sample, ScriptedEngine]:
    """One conversation whose turns are scripted."""
    engine = ScriptedEngine(codec, script, **settings)
    conversations = Conversations(engine, task, codec, max_tokens=MAX_TOKENS)
    conversations.begin("it", row, seed=3)
    (sample,) = run_all(conversations)
    assert sample.key == "it"
    return sample, engine


# Scripted turns.

ROW = Row("12+34+56+78=", "180", "calculator 0")


def test_the_right_tool_calls_earn_the_reward_and_every_token_is_where_it_belongs(
    codec: TextCodec, calculator: Calculator
) -> None:
    sample, engine = talk(codec, calculator, ROW, ["c12+34", "c46+56", "c102+78", "a180"])
    assert sample.judgement == Judgement(1.0, correct=True, parsed=True, components={"tool_calls": 3.0})
    assert (sample.reward, sample.finish_reason, sample.turns) == (1.0, "stop", 4)
    pieces = [
        (ROW.prompt, False),
        *(("c12+34", True), ("46;", False)),
        *(("c46+56", True), ("102;", False)),
        *(("c102+78", True), ("180;", False)),
        ("a180", True),
    ]
    tokens: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    for text, by_policy in pieces:
        piece = codec.encode(text) + [EOS] * by_policy
        tokens += piece
        mask += [by_policy] * len(piece)
        logprobs += [-float(i + 1) if by_policy else 0.0 for i in range(len(piece))]
    assert sample.token_ids == tokens
    assert sample.loss_mask().tolist() == mask
    assert sample.behaviour_logprobs().tolist() == logprobs
    assert sample.num_sampled == sum(mask)
    # Each turn is asked for with all that stands so far, and a seed of its own.
    ends = [i for i, (now, before) in enumerate(zip(mask, [False, *mask], strict=False)) if now and not before]
    assert engine.prompts == [tokens[:end] for end in ends]
    assert len(set(engine.seeds)) == 4


def test_a_wrong_answer_ends_the_conversation_unrewarded(codec: TextCodec, calculator: Calculator) -> None:
    sample, _ = talk(codec, calculator, ROW, ["c12+34", "a46"])
    assert sample.judgement == Judgement(0.0, correct=False, parsed=True, components={"tool_calls": 1.0})


def test_what_a_turn_earns_is_kept_at_its_last_token(codec: TextCodec) -> None:
    """Of every turn but the last, whose reward is the rest of the sample's."""
    sample, _ = talk(codec, ChatterTask(), Row("1+2=", "", "chatter 0"), ["1", "23", "4"])
    assert sample.reward == 0.75
    ends = [end - 1 for _, end in sample.sampled]
    assert np.flatnonzero(sample.token_rewards()).tolist() == ends[:2]
    assert sample.token_rewards()[ends[:2]].tolist() == [0.25, 0.25]


def test_a_turn_that_was_cut_is_not_shown_to_the_environment(codec: TextCodec, calculator: Calculator) -> None:
    sample, _ = talk(codec, calculator, ROW, ["c12+34", "c46+5..."])
    assert (sample.finish_reason, sample.turns, sample.reward) == ("length", 2, 0.0)
    assert sample.judgement is not None
    assert (sample.judgement.correct, sample.judgement.parsed) == (False, False)
    assert sample.token_ids[-4:] == codec.encode("46+5")  # it was sampled, and can be learnt from
    assert sample.loss_mask()[-5:].all()


def test_a_turn_gets_no_more_tokens_than_the_context_has_room_for(codec: TextCodec, calculator: Calculator) -> None:
    # The prompt has 12 tokens, the first turn 7 with its end, the reply 3: 22 of 30, and 8 are left.
    sample, engine = talk(codec, calculator, ROW, ["c12+34", "c46+56.."], max_model_len=30)
    assert engine.max_tokens == [MAX_TOKENS, 8]
    assert sample.turns == 2


@pytest.mark.parametrize("max_model_len", [20, 21, 22])
def test_a_reply_that_fills_the_context_ends_the_conversation_at_its_length(
    max_model_len: int, codec: TextCodec, calculator: Calculator
) -> None:
    sample, engine = talk(codec, calculator, ROW, ["c12+34"], max_model_len=max_model_len)
    assert (sample.finish_reason, sample.turns, len(engine.prompts)) == ("length", 1, 1)
    assert sample.judgement is not None
    assert (sample.judgement.correct, sample.judgement.parsed) == (False, False)


def test_rewards_of_the_turns_add_up(codec: TextCodec) -> None:
    sample, _ = talk(codec, ChatterTask(), ROW, ["1", "2", "3"])
    assert sample.reward == 0.75
    assert sample.judgement == Judgement(0.75, correct=True, parsed=True)


def test_an_aborted_conversation_is_not_heard_of_again(codec: TextCodec, calculator: Calculator) -> None:
    engine = ScriptedEngine(codec, ["a180", "a180"])
    conversations = Conversations(engine, calculator, codec, max_tokens=MAX_TOKENS)
    for key in "abc":
        conversations.begin(key, ROW, seed=0)
    conversations.abort(["b", "nobody"])
    assert (conversations.num_running, engine.num_unfinished) == (2, 2)
    assert [sample.key for sample in run_all(conversations)] == ["a", "c"]


def test_the_opening_is_what_every_sample_begins_with(
    codec: TextCodec, calculator: Calculator, arithmetic: Arithmetic
) -> None:
    sample, _ = talk(codec, calculator, ROW, ["a180"])
    assert opening(calculator, codec, ROW) == sample.token_ids[: sample.prompt_length] == codec.encode(ROW.prompt)
    row = arithmetic.rows("train")[0]
    assert opening(arithmetic, codec, row) == codec.encode(row.prompt)


def test_a_demonstration_played_turn_by_turn_is_rewarded(codec: TextCodec, calculator: Calculator) -> None:
    for row in calculator.rows("train")[:10]:
        turns = [segment.text for segment in calculator.demonstration(row) if segment.by_model]
        sample, _ = talk(codec, calculator, row, turns)
        assert sample.reward == 1.0
        shown = codec.decode(sample.token_ids)
        assert shown == "".join(segment.text for segment in calculator.demonstration(row))


# A real engine with a model that knows nothing.


def test_what_an_untrained_model_says_stands_as_it_was_sampled(
    engine: VllmEngine, codec: TextCodec, trainer: Any
) -> None:
    task, recording = ChatterTask(), Recording(engine)
    conversations = Conversations(recording, task, codec, max_tokens=100)
    for number in range(24):
        conversations.begin(number, task.rows("train")[0], seed=number)
    samples = run_all(conversations)
    assert sum(sample.turns == 3 for sample in samples) > 12
    answers = [(prompt, recording.completions[name].token_ids.tolist()) for name, prompt in recording.prompts.items()]
    for sample in samples:
        for index, (begin, end) in enumerate(sample.sampled):
            # What the engine sampled for exactly these tokens (short openings may be equal, and their answers differ).
            assert (sample.token_ids[:begin], sample.token_ids[begin:end]) in answers
            if index:
                assert sample.token_ids[sample.sampled[index - 1][1] : begin] == codec.encode(f"{index};")
    # Tokenised again, some of it would be other tokens: the special ones have no text.
    again = [codec.encode(codec.decode(sample.token_ids)) for sample in samples]
    assert any(one != sample.token_ids for one, sample in zip(again, samples, strict=True))
    # And the log-probabilities of every turn are the trainer's, with all that was said before it.
    said = trainer.says([(sample.token_ids, sample.loss_mask().tolist()) for sample in samples])
    found = np.concatenate([sample.behaviour_logprobs()[sample.loss_mask()] for sample in samples])
    assert np.abs(found - said.logprobs.numpy())[said.edge.numpy() > 1e-5].max() < TOLERANCE


def test_conversations_of_many_turns_become_one_record_of_a_ticket(
    engine: VllmEngine, codec: TextCodec, trainer: Any, source: Any, make_ticket: Any
) -> None:
    task = ChatterTask()
    source.publish(trainer.weights(5))
    actor = LMActor(
        actor_id="lm-0",
        engine=engine,
        conversations=Conversations(engine, task, codec, max_tokens=100),
        rows=task.rows("train"),
        weights_source=source,
    )
    (outcome,) = actor.produce_all([make_ticket(0, num_samples=8)])
    assert not isinstance(outcome, Failure)
    summary, trajectory = outcome
    covered = np.zeros(len(trajectory.token_ids), int)
    for begin, end, version in trajectory.version_spans.tolist():
        assert version == 5
        covered[begin:end] += 1
    assert covered.tolist() == trajectory.loss_mask.astype(int).tolist()
    assert (trajectory.tokens.behaviour_logprobs[~trajectory.loss_mask] == 0).all()
    gaps = np.diff(trajectory.loss_mask.astype(int))
    assert int((gaps == 1).sum()) == sum(len(env.turns) for env in task.envs) + _cut(summary)
    assert trajectory.rewards.tolist() == [0.25 * len(env.turns) for env in task.envs]


def _cut(summary: Any) -> int:
    """Turns that the environment was not shown."""
    return sum(sample.truncated for sample in summary.samples)


def test_the_calculator_ends_what_an_untrained_model_says_without_a_reward(
    engine: VllmEngine, codec: TextCodec, calculator: Calculator
) -> None:
    conversations = Conversations(engine, calculator, codec, max_tokens=MAX_TOKENS)
    row = calculator.rows("train")[0]
    for number in range(32):
        conversations.begin(number, row, seed=number)
    samples = run_all(conversations)
    assert len(samples) == 32
    for sample in samples:
        assert sample.token_ids[: sample.prompt_length] == codec.encode(row.prompt)
        assert sample.judgement is not None
        assert sample.reward == sample.judgement.reward == 0.0


# Evaluation.


def test_an_evaluation_answers_each_held_out_row_once_and_the_same_weights_give_the_same_answers(
    engine: VllmEngine, codec: TextCodec, arithmetic: Arithmetic, trainer: Any
) -> None:
    conversations = Conversations(engine, arithmetic, codec, max_tokens=MAX_TOKENS, greedy=True)
    rows = arithmetic.rows("eval")
    evaluator = LMEvaluator(engine, conversations, rows, LMEvalConfig())
    result = evaluator.evaluate(trainer.weights(4))
    assert (result.n, result.policy_version, len(result.lengths)) == (20, 4, 20)
    # An answer is all up to the end-of-sequence token, or all that there was room for.
    answers = [_until_end(trainer.greedy(codec.encode(row.prompt), MAX_TOKENS)) for row in rows]
    judged = [arithmetic.judge(row, codec.decode(answer)) for row, answer in zip(rows, answers, strict=True)]
    assert list(result.lengths) == [len(answer) for answer in answers]
    assert result.mean == np.mean([item.correct for item in judged])
    assert result.unparsed == sum(not item.parsed for item in judged)
    assert evaluator.evaluate(trainer.weights(4)) == result
    assert evaluator.evaluate(trainer.weights(4), episodes=5).lengths == result.lengths[:5]
    with pytest.raises(ValueError, match="an evaluation needs at least one"):
        evaluator.evaluate(trainer.weights(4), episodes=0)


def _until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
