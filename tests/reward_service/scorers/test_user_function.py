"""What a user's reward function may look like, and what it may say: a habit is followed where the signature shows it,
and what is no number for one text is refused by name. Nothing becomes a constant, and no list is summed up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.protocol import ArrayField, Message, ScoreItem, Segment
from rollcall.reward_service.scorer import Failure, Outcome, Score
from rollcall.reward_service.scorers.user_function import Misfit, UserFunction, user_function

Load = Callable[[str], UserFunction]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The function `score` of a module with this source."""

    def made(source: str) -> UserFunction:
        (tmp_path / "own_rewards.py").write_text(
            "import asyncio, functools, decimal\nimport numpy as np\nimport torch\n" + source
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return user_function("own_rewards:score")

    return made


ITEMS = [
    ScoreItem(id="0", prompt="2+2=", response="4", metadata={"answer": "4", "level": 1, "source": "sums"}),
    ScoreItem(id="1", prompt="2+3=", response="maybe 6", metadata={"answer": "5", "level": 2, "source": "sums"}),
]
STEPS = ArrayField.of(np.zeros(4, np.float32))
SEGMENT = ScoreItem(id="s", segment=Segment(observations=STEPS, actions=STEPS))


def values(outcomes: list[Outcome]) -> list[float]:
    assert all(isinstance(outcome, Score) for outcome in outcomes), outcomes
    return [outcome.value for outcome in outcomes if isinstance(outcome, Score)]


HABITS = {
    "an item": "def score(item): return len(item.response)",
    "an item by any name": "def score(x, scale=1.0, **kwargs): return scale * len(x.response)",
    "behind a decorator": "def score(*args, **kwargs): return len(args[0].response)",
    "an instance": "class Length:\n    def __call__(self, item): return len(item.response)\nscore = Length()",
    "a partial": "def f(item, scale): return scale * len(item.response)\nscore = functools.partial(f, scale=1.0)",
    "awaited": "async def score(item):\n    await asyncio.sleep(0)\n    return len(item.response)",
    "items": "def score(items): return [len(item.response) for item in items]\nscore.batched = True",
    "items by the parameter's name": "def score(items): return [len(item.response) for item in items]",
    "items by annotation": "def score(batch: list): return [len(item.response) for item in batch]",
    "items, awaited": "async def score(items): return [len(item.response) for item in items]",
    "an array for items": "def score(items): return np.array([len(item.response) for item in items])",
    "a tensor for items": "def score(items): return torch.tensor([len(item.response) for item in items])",
    "the response": "def score(response): return len(response)",
    "prompt and response": "def score(prompt, response): return len(response) if prompt.startswith('2+') else -1",
    "TRL": "def score(completions, **kwargs): return [float(len(c)) for c in completions]",
    "TRL's keywords": (
        "def score(prompts=None, completions=None, answer=None, **kwargs):\n"
        "    assert [p + a for p, a in zip(prompts, answer)] == ['2+2=4', '2+3=5'] and kwargs == {'level': [1, 2],"
        " 'source': ['sums', 'sums']}\n"
        "    return [len(c) for c in completions]"
    ),
    "verl": (
        "def score(source, solution_str, ground_truth, extra_info=None):\n"
        "    assert source == 'sums' and extra_info['answer'] == ground_truth\n"
        "    return {'score': len(solution_str), 'acc': True, 'pred': 'x'}"
    ),
}


@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_that_the_signature_shows_gets_what_it_means(load: Load, habit: str) -> None:
    assert values(load(HABITS[habit]).scores(ITEMS)) == [1.0, 7.0]


@pytest.mark.parametrize(
    "said",
    ["1", "True", "np.bool_(True)", "np.float32(1)", "np.array([1.0])", "torch.tensor(1.0)", "decimal.Decimal(1)",
     "torch.ones(1, requires_grad=True)", "{'score': np.int64(1)}"],
)  # fmt: skip
def test_one_number_of_whatever_type_is_a_score(load: Load, said: str) -> None:
    assert values(load(f"def score(item): return {said}").scores(ITEMS)) == [1.0, 1.0]


REFUSED = {
    "'0.5'": "gave the text '0.5' for one text: give one number",
    "[1.0, 0.5]": "gave a list of 2 (float, float) for one text",
    "[1.0]": "gave a list of 1 (float) for one text",
    "[0.0] * 126": "gave a list of 126 (float, float, float, float, ...) for one text",
    "(1.0, {'why': 'fine'})": "gave a tuple of 2 (float, dict) for one text",
    "np.ones(3)": "gave an array of shape [3] for one text",
    "torch.ones(2, 2)": "gave an array of shape [2, 2] for one text",
    "{'reward': 1.0}": "gave a dict without 'score' (it has reward)",
    "{'score': None}": "gave a NoneType for one text",
    "{'score': 1, 'components': {'why': 'fine'}}": "gave the text 'fine' as component 'why'",
    "{'score': 1, 'components': 3}": "gave an int as components",
    "(one for one in [1.0])": "gave a generator for one text",
    "print": "gave a builtin_function_or_method for one text",
    "1j": "gave a complex for one text",
    "None": "no score (None)",
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_no_number_for_one_text_is_refused_by_name(load: Load, said: str) -> None:
    for source in (f"def score(item): return {said}", f"def score(completions): return [{said} for _ in completions]"):
        for outcome in load(source).scores(ITEMS):
            assert isinstance(outcome, Failure) and REFUSED[said] in outcome.message, outcome
            assert "\n" not in outcome.message


def test_a_number_that_is_not_finite_is_no_score(load: Load) -> None:
    (outcome, _) = load("def score(item): return float('nan')").scores(ITEMS)
    assert isinstance(outcome, Failure) and outcome.kind == "non_finite"


@pytest.mark.parametrize(
    "source",
    [
        "def score(samples, **kwargs): return [-abs(20.0 - len(s)) for s in samples]",
        "def score(texts): return sum(len(t) for t in texts)",
        "def score(outputs): return float('4' in outputs)",
        "def score(output): return float(output == '4')",
        "def score(output): return float(output in ('4', '5'))",
    ],
)
def test_a_function_that_takes_an_item_for_a_text_or_a_list_fails_and_is_no_constant(load: Load, source: str) -> None:
    with pytest.raises(TypeError, match=r"item and no (list|text)|ScoreItem' is not iterable"):
        load(source).scores(ITEMS)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("sum(map(len, completions))", "gave an int for a list of 2: give a list of as many scores"),
        ("[1.0]", "gave 1 scores for 2 items"),
        ("{'rewards': [1.0, 1.0]}", "gave a dict for a list of 2"),
        ("'00'", "gave the text '00' for a list of 2"),
    ],
)
def test_a_list_of_another_length_is_refused(load: Load, said: str, message: str) -> None:
    with pytest.raises(Misfit, match=message):
        load(f"def score(completions, **columns): return {said}").scores(ITEMS)


def test_a_column_that_the_data_lack_is_named_with_those_that_they_have(load: Load) -> None:
    for source in ("def score(response, difficulty): ...", "def score(completions, difficulty, **columns): ..."):
        with pytest.raises(Misfit, match=r"needs 'difficulty', .* \(they have answer, level, source\)"):
            load(source).scores(ITEMS)


@pytest.mark.parametrize(
    "source",
    ["def score(): ...", "def score(query, target): ...", "def score(item, weight): ...", "def score(*, item): ...",
     "def score(prompt, answer): ...", "def score(queries, prompts, labels): ...", "def score(text: str): ...",
     "score = 3", "class score: ..."],
)  # fmt: skip
def test_parameters_that_nothing_fits_are_refused_before_anything_is_scored(load: Load, source: str) -> None:
    with pytest.raises(BadInput, match=r"^own_rewards:score.*(no reward function|not a function)") as refused:
        load(source)
    assert "\n" not in str(refused.value)


def test_the_prompt_of_a_chat_is_its_last_message(load: Load) -> None:
    chat = ScoreItem(id="0", messages=(Message(role="user", content="2+2="),), response="4")
    assert values(load("def score(prompt, response): return float(prompt == '2+2=')").scores([chat])) == [1.0]


def test_steps_of_a_segment_get_a_number_each_and_another_count_is_named(load: Load) -> None:
    for said in ("[0, 1, 2, 3]", "np.arange(4)", "torch.arange(4)", "{'score': (0, 1, 2, 3)}"):
        assert load(f"def score(item): return {said}").scores([SEGMENT]) == [Score(6.0, {}, (0.0, 1.0, 2.0, 3.0))]
    for said, message in (
        ("[1.0] * 7", "gave 7 scores for 4 steps"),
        ("np.ones((4, 1))", "gave an array of shape [4, 1] for 4 steps"),
        ("['a'] * 4", "gave the text 'a' for one step"),
    ):
        (outcome,) = load(f"def score(item): return {said}").scores([SEGMENT])
        assert isinstance(outcome, Failure) and message in outcome.message


def test_a_function_of_texts_takes_no_segments(load: Load) -> None:
    assert load("def score(completions): ...").takes == {"text"}
    assert load("def score(item): ...").takes == {"text", "segment"}
