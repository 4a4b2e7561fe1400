"""Rewards of steps by code that nobody trusts: what it says is each step's reward, and every way we know to say
anything else is that item's failure, in one line. All in the real sandbox."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from rollcall.reward_service.protocol import ArrayField, ScoreItem, Segment
from rollcall.reward_service.sandbox.limits import Limits
from rollcall.reward_service.scorer import Failure, Outcome, Score
from rollcall.reward_service.scorers.building import build_scorer
from rollcall.reward_service.scorers.code_reward import CodeReward
from rollcall.reward_service.scorers.code_reward_config import CodeRewardConfig
from tests.needs import lack

HEAD = "def compute_reward(observation, action, next_observation, terminated):\n"
LIMITS = Limits(wall_s=1.5, cpu_s=600, processes=2, memory_bytes=256 << 20)
STEPS = 7


def of(body: str) -> str:
    return HEAD + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")


@contextmanager
def built(code: str, **settings: object) -> Iterator[CodeReward]:
    scorer = build_scorer(CodeRewardConfig.model_validate({"code": code, "limits": LIMITS, **settings}))
    assert isinstance(scorer, CodeReward)
    if not scorer.containment.contained:
        lack("containment", scorer.containment.describe())
    try:
        yield scorer
    finally:
        scorer.close()


def segment(seed: int, *, steps: int = STEPS, terminated: bool = False) -> ScoreItem:
    rng = np.random.default_rng(seed)
    return ScoreItem(
        id=str(seed),
        segment=Segment(
            observations=ArrayField.of(rng.normal(size=(steps, 3)).astype(np.float32)),
            actions=ArrayField.of(rng.integers(0, 2, steps)),
            last_observation=ArrayField.of(rng.normal(size=(1, 3)).astype(np.float32)),
            terminated=terminated,
        ),
    )


def scored(code: str, *items: ScoreItem, **settings: object) -> list[Outcome]:
    with built(code, **settings) as scorer:
        return scorer.score(items or [segment(0)])


def test_each_step_has_the_functions_reward_of_what_was_seen_done_and_led_to() -> None:
    """By the definition: r_t = f(o_t, a_t, o_{t+1}, whether the episode ended there)."""
    code = of(
        """
        moved, pushed = next_observation[0] - observation[0], 0.5 * action
        return moved + pushed - 10 * terminated, {"moved": moved, "pushed": pushed}
        """
    )
    items = [segment(1), segment(2, terminated=True), segment(3, steps=1)]
    for item, outcome in zip(items, scored(code, *items), strict=True):
        assert item.segment is not None and item.segment.last_observation is not None
        observations = item.segment.observations.array().astype(np.float64)
        following = np.concatenate([observations[1:], item.segment.last_observation.array()])
        moved, pushed = following[:, 0] - observations[:, 0], 0.5 * item.segment.actions.array()
        fell = np.zeros(len(moved))
        fell[-1] = 10 * bool(item.segment.terminated)
        assert isinstance(outcome, Score) and outcome.step_values is not None
        np.testing.assert_allclose(outcome.step_values, moved + pushed - fell, rtol=1e-12)
        assert outcome.value == pytest.approx(sum(outcome.step_values))
        assert outcome.components == {"moved": pytest.approx(moved.mean()), "pushed": pytest.approx(pushed.mean())}


def test_what_a_function_remembers_of_one_segment_changes_no_others_rewards() -> None:
    code = "calls = []\n" + of("calls.append(1)\nreturn float(len(calls)), {'calls': float(len(calls))}")
    first, second = scored(code, segment(1), segment(2))
    assert isinstance(first, Score) and isinstance(second, Score)
    assert first.step_values == second.step_values == tuple(map(float, range(1, STEPS + 1)))


def test_a_segment_that_fails_fails_alone() -> None:
    code = of("return 1.0 / (0.0 if terminated else 1.0), {'one': 1.0}")
    good, bad, again = scored(code, segment(1), segment(2, terminated=True), segment(3))
    assert isinstance(good, Score) and isinstance(again, Score)
    assert bad == Failure("scorer_failed", "ZeroDivisionError: float division by zero (line 2)")


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        ("def compute_reward(:", "scorer_failed", "SyntaxError"),
        ("x = 1", "scorer_failed", "there is no function compute_reward"),
        ("def compute_reward(state): return 0.0, {'a': 0.0}", "scorer_failed", "must take (observation, action, next"),
        (of("return 1.0"), "scorer_failed", "returned a float"),
        (of("return [1.0, {'a': 0.0}]"), "scorer_failed", "returned a list"),
        (of("return 1.0, {}"), "scorer_failed", "0 components"),
        (of("return 1.0, {f'c{i}': 0.0 for i in range(30)}"), "scorer_failed", "30 components"),
        (of("return '1', {'a': 0.0}"), "scorer_failed", "the reward is a str, and no number"),
        (of("return True, {'a': 0.0}"), "scorer_failed", "the reward is a bool"),
        (of("return float('nan'), {'a': 0.0}"), "scorer_failed", "the reward is nan: it must be finite"),
        (of("return 0.0, {'a': float('inf')}"), "scorer_failed", "component a is inf"),
        (of("return 0.0, {('a' if action else 'b'): 0.0}"), "scorer_failed", "other names than at the step before"),
        (of("return 0.0, {'<script>': 0.0}"), "scorer_failed", "a component is called '<script>'"),
        (of("return 0.0, {'mean': 0.0}"), "scorer_failed", "as something else is"),
        ("import numpy as np\n" + of("return 0.0, {'a': 0.0}"), "scorer_failed", "numpy cannot be imported"),
        (of("import os\nreturn 0.0, {'a': 0.0}"), "scorer_failed", "os cannot be imported"),
        (of("return 0.0, {'a': float(open('/etc/passwd').read())}"), "scorer_failed", "NameError"),
        (of("raise SystemExit"), "scorer_failed", "SystemExit"),
        (of("return compute_reward(observation, action, next_observation, 0)"), "scorer_failed", "RecursionError"),
        (of("held = [bytearray(1 << 20) for _ in range(1 << 16)]"), "scorer_failed", "memory"),
        (of("while True: pass"), "timeout", "7 calls took longer than 1.51 s"),
        (of("return float(sum(range(3_000_000))), {'a': 0.0}"), "timeout", "ms are allowed (call_s)"),
        ("while True: pass", "timeout", "took longer than"),
    ],
)
def test_what_is_no_reward_is_refused_in_one_line(code: str, kind: str, said: str) -> None:
    (outcome,) = scored(code)
    assert isinstance(outcome, Failure), outcome
    assert outcome.kind == kind
    assert said.lower() in outcome.message.lower()
    assert "\n" not in outcome.message and len(outcome.message) <= 400


# Past the words that are left out: what every object leads to. What it reaches is the sandbox's own process.
REACH = """
found = [kind for kind in ().__class__.__base__.__subclasses__() if kind.__name__ == "_wrap_close"][0]
names = found.__init__.__globals__
"""


def test_code_that_reaches_the_shell_reaches_nothing_outside(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    mark, secret = tmp_path / "mark", tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    me = psutil.Process().pid
    body = REACH + textwrap.dedent(
        f"""
        went = [names["system"]("touch {mark}; kill -9 {me}") == 0]
        for attempt in (
            lambda: names["open"]({str(secret)!r}),
            lambda: names["kill"]({me}, 9),
            lambda: names["listdir"]({str(tmp_path)!r}),
        ):
            try:
                attempt()
                went.append(True)
            except Exception:
                went.append(False)
        return 0.0, {{"went": float(sum(went))}}
        """
    )
    (outcome,) = scored(of(body), call_s=1.0)
    assert isinstance(outcome, Score), outcome
    assert outcome.components == {"went": 0.0}
    assert not mark.exists()


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        (b"{}", "does not answer as it should"),
        (b"[" * 10_000, "no JSON"),
        (b'{"results": [{"rewards": [1], "components": {"a": 1}}], "cpu_s": 0}', "1 rewards"),
        (b'{"results": [{"rewards": [1,1,1,1,1,1,NaN], "components": {"a": 1}}], "cpu_s": 0}', "no finite number"),
        (b'{"results": [{"rewards": [1,1,1,1,1,1,"1"], "components": {"a": 1}}], "cpu_s": 0}', "no finite number"),
        (b'{"results": [{"error": "\\u001b[2J\\n<b>"}], "cpu_s": 0}', "[2J <b>"),
        (b'{"results": "all", "cpu_s": 0}', "does not answer as it should"),
    ],
)
def test_an_answer_that_the_code_forges_is_held_to_what_an_answer_is(forged: bytes, said: str) -> None:
    body = (
        REACH
        + f"""
names["write"](3, len({forged!r}).to_bytes(4, "little") + {forged!r})
names["_exit"](0)
"""
    )
    (outcome,) = scored(of(body))
    assert isinstance(outcome, Failure) and said in outcome.message, outcome
    assert outcome.message.isprintable()


def test_after_a_segment_without_an_end_others_are_scored_as_before() -> None:
    code = of("while terminated: pass\nreturn 1.0, {'one': 1.0}")
    with built(code) as scorer:
        before = scorer.score([segment(1)])
        assert [o.kind for o in scorer.score([segment(1, terminated=True)]) if isinstance(o, Failure)] == ["timeout"]
        assert scorer.score([segment(1)]) == before


def test_nothing_is_left_of_a_sandbox_that_is_closed() -> None:
    def helpers() -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True)}

    before = helpers()
    with built(of("return 1.0, {'one': 1.0}")) as scorer:
        scorer.score([segment(1)])
        assert helpers() - before
    _soon(lambda: not helpers() - before)


def _soon(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_another_code_is_another_version() -> None:
    codes = [of("return 1.0, {'one': 1.0}"), of("return 2.0, {'one': 1.0}")]
    versions = []
    for code in codes:
        with built(code) as scorer:
            versions.append(scorer.version)
    assert versions[0] != versions[1]


def test_a_segment_that_is_too_large_for_one_message_is_said_to_be() -> None:
    observations = ArrayField.of(np.full((60, 28_000), 1 / 3))
    large = Segment(
        observations=observations,
        actions=ArrayField.of(np.zeros(60)),
        last_observation=ArrayField.of(np.zeros((1, 28_000))),
    )
    small = segment(1)
    outcomes = scored(of("return 1.0, {'one': 1.0}"), ScoreItem(id="large", segment=large), small)
    assert isinstance(outcomes[0], Failure) and outcomes[0].kind == "too_long"
    assert isinstance(outcomes[1], Score)


def test_a_segment_without_its_last_observation_is_not_guessed_at() -> None:
    item = segment(0)
    assert item.segment is not None
    short = ScoreItem(id="1", segment=item.segment.model_copy(update={"last_observation": None}))
    assert scored(of("return 1.0, {'one': 1.0}"), short) == [
        Failure("unsupported", "this scorer takes segments with their last_observation")
    ]
