"""The sum with a tool: what every kind of turn is answered with, and that demonstrations earn the reward."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rollcall.actors.tasks.calculator import Calculator, CalculatorConfig, CalculatorEnv
from rollcall.actors.tasks.text_task import Row, TextStep

ROW = Row("12+34+56+78=", "180", "calculator 0")


def make_env(**settings: Any) -> CalculatorEnv:
    env = Calculator(CalculatorConfig(**settings)).environment(ROW)
    assert env.reset() == ROW.prompt
    return env


def play(*turns: str, **settings: Any) -> TextStep:
    """The reply to the last turn; those before it must not end the episode."""
    env = make_env(**settings)
    for turn in turns[:-1]:
        assert not env.step(turn).terminated
    return env.step(turns[-1])


def test_a_tool_call_is_answered_with_the_sum_and_earns_nothing_yet() -> None:
    step = play("c12+34")
    assert step == TextStep("46;", 0.0, terminated=False, correct=False, parsed=True, components={"tool_calls": 1.0})


def test_a_correct_answer_after_a_tool_call_is_rewarded() -> None:
    step = play("c12+34", "c46+56", "a180")
    assert step == TextStep("", 1.0, terminated=True, correct=True, parsed=True, components={"tool_calls": 2.0})


def test_a_wrong_answer_ends_the_episode_unrewarded() -> None:
    step = play("c12+34", "a181")
    assert (step.reward, step.terminated, step.correct, step.parsed) == (0.0, True, False, True)


def test_a_correct_answer_without_the_tool_is_correct_but_earns_nothing() -> None:
    step = play("a180")
    assert (step.reward, step.terminated, step.correct, step.parsed) == (0.0, True, True, True)
    assert play("a180", min_tool_calls=0).reward == 1.0
    assert play("c1+2", "a180", min_tool_calls=2).reward == 0.0
    assert play("c1+2", "c1+2", "a180", min_tool_calls=2).reward == 1.0


@pytest.mark.parametrize(
    "turn",
    [
        *("", "180", "c12", "c12+", "c12+34+56", "c-1+2", "c1-2", "c1*2", "c 1+2", "b180", "a", "a-180", "a180;"),
        *("a1 80", "c1+2\na180", "ca180", "c1234567890123+1", "c١+2", "c__import__('os')+1", "c1+2;", "a180a180"),
    ],
)
def test_any_other_turn_ends_the_episode_unrewarded_and_unparsed(turn: str) -> None:
    step = play("c12+34", turn)
    assert (step.text, step.reward, step.terminated, step.correct, step.parsed) == ("", 0.0, True, False, False)
    assert step.components == {"tool_calls": 1.0}


def test_blanks_around_a_turn_do_not_matter_but_leading_zeros_of_an_answer_do() -> None:
    assert play(" c12+34\n").text == "46;"
    assert play("c012+34", "a180 ").reward == 1.0
    step = play("c12+34", "a0180")
    assert (step.reward, step.correct, step.parsed) == (0.0, False, True)


@given(st.integers(0, 10**12 - 1), st.integers(0, 10**12 - 1))
def test_the_tool_adds_exactly(a: int, b: int) -> None:
    assert make_env().step(f"c{a}+{b}").text == f"{a + b};"


@pytest.mark.parametrize(("settings", "limit"), [({}, 6), ({"max_turns": 4}, 4)])
def test_an_answer_in_the_last_turn_counts_and_a_tool_call_in_it_ends_the_episode(
    settings: dict[str, int], limit: int
) -> None:
    calls = ["c12+34"] * (limit - 1)
    assert play(*calls, "a180", **settings).reward == 1.0
    step = play(*calls, "c12+34", **settings)
    assert (step.text, step.reward, step.terminated, step.correct, step.parsed) == ("", 0.0, True, False, False)
    assert step.components == {"tool_calls": float(limit)}


def test_an_ended_episode_takes_no_turn_until_it_is_reset() -> None:
    env = make_env()
    env.step("c12+34")
    env.step("a180")
    with pytest.raises(ValueError, match="call reset first"):
        env.step("a180")
    env.reset()
    assert env.step("a180").components == {"tool_calls": 0.0}


@pytest.mark.parametrize("settings", [{}, {"digits": 3, "num_operands": 2}, {"num_operands": 6, "min_tool_calls": 5}])
def test_demonstrations_are_conversations_with_the_env_that_earn_the_reward(settings: dict[str, Any]) -> None:
    task = Calculator(CalculatorConfig(num_train_rows=100, num_eval_rows=20, **settings))
    for row in [*task.rows("train"), *task.rows("eval")]:
        assert sum(int(part) for part in row.prompt[:-1].split("+")) == int(row.answer)
        prompt, *segments = task.demonstration(row)
        env = task.environment(row)
        assert (prompt.text, prompt.by_model) == (env.reset(), False)
        while len(segments) > 1:
            turn, reply, *segments = segments
            assert (turn.by_model, reply.by_model) == (True, False)
            assert env.step(turn.text).text == reply.text
        (answer,) = segments
        assert answer.by_model
        assert env.step(answer.text).reward == 1.0


def test_the_demonstration_of_a_sum_goes_from_left_to_right() -> None:
    segments = Calculator(CalculatorConfig()).demonstration(ROW)
    assert [segment.text for segment in segments] == [
        *("12+34+56+78=", "c12+34", "46;", "c46+56", "102;", "c102+78", "180;", "a180")
    ]


def test_the_alphabet_holds_what_can_occur_and_nothing_else() -> None:
    task = Calculator(CalculatorConfig(num_train_rows=200))
    texts = [segment.text for row in task.rows("train") for segment in task.demonstration(row)]
    assert set("".join(texts)) == set(task.alphabet())
    assert len(task.alphabet()) == len(set(task.alphabet()))


def test_held_out_sums_are_never_learnt_from() -> None:
    task = Calculator(CalculatorConfig(digits=1, num_operands=2, num_eval_rows=40))
    train, held_out = ({row.prompt for row in task.rows(split)} for split in ("train", "eval"))
    assert (len(train), len(held_out), len(train | held_out)) == (60, 40, 100)


@pytest.mark.parametrize(
    ("completion", "reward", "correct", "parsed"),
    [("a180", 0.0, True, True), ("a1", 0.0, False, True), ("c1+2", 0.0, False, False), ("?", 0.0, False, False)],
)
def test_a_completion_is_judged_as_the_only_turn(completion: str, reward: float, correct: bool, parsed: bool) -> None:
    judgement = Calculator(CalculatorConfig()).judge(ROW, completion)
    assert (judgement.reward, judgement.correct, judgement.parsed) == (reward, correct, parsed)
    assert Calculator(CalculatorConfig(min_tool_calls=0)).judge(ROW, "a180").reward == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_turns": 3}, "give at least 4"), ({"min_tool_calls": 4}, "takes 3: give at most that")],
)
def test_settings_under_which_no_demonstration_could_earn_the_reward_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        CalculatorConfig(**settings)
