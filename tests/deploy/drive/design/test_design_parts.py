"""The parts of a search for a reward: what a model is told of an env, how it is asked and its answer read, and the
journal of what became of each."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rollcall.actors.envs.env_config import EnvConfig
from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.deploy.config.recipe.design_config import DesignConfig, DesignRunConfig
from rollcall.deploy.config.settings import parse_yaml, to_yaml
from rollcall.deploy.drive.design import prompts
from rollcall.deploy.drive.design.coding_model import CodingModel, NotAsked, NoUse
from rollcall.deploy.drive.design.env_text import env_text, source_without_reward, without_reward
from rollcall.deploy.drive.design.fitness import Fitness, NoFitness
from rollcall.deploy.drive.design.training import Trainings
from rollcall.deploy.drive.design.validation import contained, problem_of, sampled_steps
from rollcall.deploy.kinds.recipes import load_config, recipe_of
from rollcall.deploy.rundir.candidates import JOURNAL, Candidate, CandidateJournal, best_of, read_candidates
from tests.deploy.drive.design.coding_server import FALLING, LATER, UPRIGHT, CodingServer, Fault, answer
from tests.runs import config_of

KEY = "sk-not-for-logs"
TRIED = Candidate(1, 1, None, "text", "def compute_reward(): ...", begun=True, fitness=12.5)


def design(url: str, **settings: Any) -> DesignConfig:
    return DesignConfig.model_validate({"task": "balance", "url": url, "model": "coder", **settings})


# What the model is told.


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0"])
def test_the_model_is_told_of_an_envs_dynamics_and_not_of_its_reward(env: str) -> None:
    text = env_text(EnvConfig(id=env), None)
    assert "reward" not in text.lower() and "costs" not in text
    assert "Observation space: Box" in text and "def step(self" in text and "def render" not in text
    if env == "CartPole-v1":
        assert "force_mag" in text and "theta_threshold_radians" in text and "Pole Angular Velocity" in text


def test_of_a_source_only_what_names_a_reward_is_left_out() -> None:
    source = """
class Env:
    '''Gives rewards.'''
    reward_range = (0, 1)
    def __init__(self, size=3, reward_scale=2.0, speed=1):
        self.size = size  # not the reward
        self._reward_scale = reward_scale
    def step(self, action):
        if action == 1:
            self.place += 1
            reward = 1.0
        elif self._reward_scale > 1:
            hidden = True
        return self.place, reward, False, False, {"reward_forward": reward}
    def _get_rew(self):
        return 3
"""
    assert source_without_reward(source) == (
        "class Env:\n\n"
        "    def __init__(self, size=3, speed=1):\n        self.size = size\n\n"
        "    def step(self, action):\n        if action == 1:\n            self.place += 1\n"
        "        return (self.place, ..., False, False, ...)"
    )


def test_of_a_docstring_sections_and_paragraphs_that_speak_of_a_reward_are_left_out() -> None:
    text = "## Goal\nReach it.\n\nThe reward is -1.\n\n## Rewards\nOne a step.\n\nAlways.\n\n## Start\nAt 0."
    assert without_reward(text) == "## Goal\nReach it.\n\n## Start\nAt 0."


def test_a_file_of_the_users_takes_the_place_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "env.txt").write_text("A cart with a pole.")
    text = env_text(EnvConfig(id="CartPole-v1"), str(tmp_path / "env.txt"))
    assert text.endswith("A cart with a pole.") and "def step" not in text
    with pytest.raises(BadInput, match=r"design.env_text = .*cannot be read"):
        env_text(EnvConfig(id="CartPole-v1"), str(tmp_path / "gone.txt"))


def test_a_later_request_has_the_best_code_its_curves_and_why_others_failed() -> None:
    curves = {"up": [float(i) for i in range(100)], "short": [1.0, 2.0]}
    failed = [replace(TRIED, number=n, fitness=None, problem="the reward is nan") for n in (2, 3)]
    messages = prompts.next_request("ENV", "TASK", best=TRIED, curves=curves, failed=failed)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[:2] == prompts.first_request("ENV", "TASK")
    assert messages[2]["content"] == "```python\ndef compute_reward(): ...\n```"
    told = messages[3]["content"]
    assert "12.5" in told and told.count("the reward is nan") == 1
    assert "- up: 0.000, 11.000, 22.000, 33.000, 44.000, 55.000, 66.000, 77.000, 88.000, 99.000; max 99.000" in told
    assert "- short: 1.000, 2.000; max 2.000, mean 1.500, min 1.000" in told


def test_without_a_best_one_the_first_request_is_made_again_with_what_failed() -> None:
    failed = [replace(TRIED, fitness=None, problem="no code")]
    messages = prompts.next_request("ENV", "TASK", best=None, curves={}, failed=failed)
    assert len(messages) == 2 and messages[1]["content"].endswith("- no code")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("```python\ndef compute_reward(): 1\n```", "def compute_reward(): 1\n"),
        (
            "a\n```\ndef compute_reward(): 1\n```\nb\n```python\ndef compute_reward(): 2\n```",
            "def compute_reward(): 2\n",
        ),
        ("```python\ndef compute_reward(): 1\n```\nUse it so:\n```python\nprint(3)\n```", "def compute_reward(): 1\n"),
        ("import math\ndef compute_reward(): return 1", "import math\ndef compute_reward(): return 1"),
        ("I would write def compute_reward and so on", None),
        ("```python\nprint(1)\n```", None),
        ("```json\n{}\n```", None),
        ("", None),
    ],
)
def test_an_answers_code_is_its_last_block_with_the_function(said: str, code: str | None) -> None:
    assert prompts.code_in(said) == code


# The model behind HTTP.


def asked(server: CodingServer, told: list[str] | None = None, **settings: Any) -> str:
    told = [] if told is None else told
    model = CodingModel(design(server.url, **settings), told.append, lambda: False)
    try:
        return model.answer(prompts.first_request("ENV", "TASK"))
    finally:
        model.close()


def test_what_may_pass_is_tried_again_and_told() -> None:
    faults = [Fault(500, "oops\nline"), Fault(429, "slow down", (("Retry-After", "0.3"),)), Fault(503)]
    told: list[str] = []
    with CodingServer([*faults, "at last"]) as server:
        began = time.monotonic()
        assert asked(server, told) == "at last"
        assert time.monotonic() - began > 0.3
        body = server.requests[-1]
    assert [line.partition(": ")[2] for line in told] == [
        "it said 500: oops line; tried again",
        "it said 429: slow down; tried again",
        "it said 503: ; tried again",
    ]
    assert body["model"] == "coder" and body["messages"][0]["role"] == "system" and body["temperature"] == 1.0


def test_half_a_character_in_an_answer_can_be_written_down() -> None:
    with CodingServer([Fault(200, '{"choices": [{"message": {"content": "a\\ud800b"}}]}')]) as server:
        assert asked(server) == "a?b"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<html>a proxy's page</html>", "not of the OpenAI protocol: '<html>a proxy's page</html>'"),
        ("[]", "not of the OpenAI protocol"),
        ('{"choices": []}', "not of the OpenAI protocol"),
        ('{"choices": [{"message": {"content": null}}]}', "the answer is empty"),
        ('{"choices": [{"message": {"content": [1]}}]}', "the answer is empty"),
    ],
)
def test_an_answer_of_no_use_is_an_answer_all_the_same(body: str, said: str) -> None:
    with CodingServer([Fault(200, body)]) as server:
        with pytest.raises(NoUse) as no_use:
            asked(server)
        assert said in str(no_use.value).replace('"<html', "'<html").replace('</html>"', "</html>'")
        assert len(server.requests) == 1


def test_a_refusal_ends_the_search_and_tells_the_key_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODER_KEY", KEY)
    with CodingServer([Fault(401, f"bad key {KEY}")]) as server:
        with pytest.raises(RollcallError, match=r"it said 401: bad key \*\*\*: fix the key in \$CODER_KEY"):
            asked(server, key_variable="CODER_KEY")
        assert server.keys == [f"Bearer {KEY}"]
    with CodingServer([Fault(404, "no such model")]) as server:
        with pytest.raises(RollcallError, match=r"said 404: no such model: fix design.url, design.model"):
            asked(server)
        assert server.keys == [None]


def test_a_key_that_is_not_there_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODER_KEY", raising=False)
    with pytest.raises(BadInput, match=r"design.key_variable = 'CODER_KEY': no key"):
        CodingModel(design("http://127.0.0.1:1/v1", key_variable="CODER_KEY"), print, lambda: False)


def test_a_model_that_is_away_or_slow_is_waited_for_as_long_as_the_patience_says() -> None:
    slow = CodingServer(["late"], before=lambda number: time.sleep(0.6))
    with slow as server, pytest.raises(RollcallError, match=r"no answer within 0.1 s .*: design.patience_s=0.4"):
        asked(server, timeout_s=0.1, patience_s=0.4)
    with pytest.raises(RollcallError, match=r"away \(.*\): design.patience_s=0.4"):
        asked(server, patience_s=0.4)  # nobody listens any more


def test_an_answer_that_drips_is_no_answer_in_time() -> None:
    """Each byte comes before httpx's own timeout, which is of a read."""
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        while not over.is_set():
            with suppress(OSError):
                client, _ = listener.accept()
                with client, suppress(OSError):
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                    while not over.wait(0.05):
                        client.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        model = CodingModel(
            design(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout_s=0.4, patience_s=1.0),
            lambda text: None,
            lambda: False,
        )
        began = time.monotonic()
        with pytest.raises(RollcallError, match=r"no answer within 0.4 s"):
            model.answer([])
        assert time.monotonic() - began < 5
        model.close()
        over.set()
        thread.join()


def test_a_stop_ends_the_wait_for_an_answer() -> None:
    with CodingServer([Fault(500)]) as server:
        model = CodingModel(design(server.url), lambda text: None, lambda: len(server.requests) > 1)
        with pytest.raises(NotAsked):
            model.answer([])
        model.close()


# What is looked at before a run is spent on it.


def test_a_reward_is_tried_on_steps_of_its_env_before_it_is_trained_by() -> None:
    steps = sampled_steps(EnvConfig(id="CartPole-v1"), seed=3)
    assert sum(item.segment.num_steps for item in steps if item.segment) == 512
    assert all(item.segment.terminated for item in steps[:-1] if item.segment)
    containment = contained()
    for body in (UPRIGHT, FALLING, LATER):
        assert problem_of(prompts.code_in(answer(body)) or "", 1e-3, steps, containment) is None
    assert "nan" in (
        problem_of(prompts.code_in(answer('return float("nan"), {}')) or "", 1e-3, steps, containment) or ""
    )
    assert "brief" in (problem_of("#" * 60_000, 1e-3, steps, containment) or "")


def test_a_box_of_actions_and_an_image_reach_a_reward_as_lists() -> None:
    code = prompts.code_in(answer("push = abs(action[0])\nreturn -push, {'push': push}")) or ""
    assert problem_of(code, 1e-3, sampled_steps(EnvConfig(id="Pendulum-v1"), seed=0), contained()) is None


# The journal.


def test_the_journal_is_whole_wherever_it_is_cut(tmp_path: Path) -> None:
    journal = CandidateJournal(tmp_path)
    journal.answered(1, 1, parent=None, text="one", code="code")
    journal.answered(1, 2, parent=None, text="two\nlines", code=None)
    journal.failed("1-2", "no code")
    journal.begun("1-1")
    journal.trained("1-1", fitness=3.5, env_steps=100)
    journal.answered(2, 1, parent="1-1", text="three", code="code")
    journal.close()
    content = (tmp_path / JOURNAL).read_bytes()
    whole = read_candidates(tmp_path)
    assert list(whole) == ["1-1", "1-2", "2-1"]
    assert best_of(whole) == whole["1-1"] == Candidate(1, 1, None, "one", "code", True, 3.5, 100)
    assert whole["1-2"].problem == "no code" and whole["2-1"].parent == "1-1" and not whole["2-1"].settled
    for cut in range(len(content)):
        (tmp_path / JOURNAL).write_bytes(content[:cut])
        assert len(read_candidates(tmp_path)) <= 3
        again = CandidateJournal(tmp_path)
        assert (tmp_path / JOURNAL).read_bytes() == content[: content.rfind(b"\n", 0, cut) + 1]
        again.answered(9, 9, parent=None, text="next", code=None)
        again.close()
        assert "9-9" in read_candidates(tmp_path)


def test_the_best_is_the_fittest_and_of_equals_the_first() -> None:
    found = [replace(TRIED, number=n, fitness=f) for n, f in enumerate((-3.0, None, -1.0, -1.0), start=1)]
    assert best_of({c.name: c for c in found}) == found[2]
    assert best_of({"1-2": found[1]}) is None


# Settings, fitness, processes.


@pytest.mark.parametrize(
    "code",
    ['def compute_reward():\n    """# not a comment: \'quoted\'"""\n', "a\r\n\tb\x85\u2028é\x00\x1b ", "- {a: 1}"],
)
def test_a_candidates_recipe_is_the_searchs_with_the_code_in_the_rewards_place(code: str) -> None:
    config = config_of("cartpole-eureka")
    assert isinstance(config, DesignRunConfig)
    tree = parse_yaml(to_yaml(config.candidate("2-3", code)), "candidate.yaml")
    found: Any = recipe_of(tree).config
    assert found.name == "2-3" and found.reward.scorer.code == code and found.reward.scorer.kind == "code_reward"
    ours, theirs = config.model_dump(mode="json"), found.model_dump(mode="json")
    assert ours.keys() - theirs.keys() == {"design"}
    assert {key for key in theirs if ours[key] != theirs[key]} == {"name", "reward"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward=math:fsum", "design writes the reward: leave out reward"),
        ("eval.episodes=0", "eval.episodes=0: candidates are judged by evaluations"),
        ("design.url=ftp://x", "design.url = 'ftp://x' (command line): must be the address of a server up to /v1"),
        ("design.key_variable=sk-1", "must be the name of an environment variable, and not the key itself"),
        ("design.fitness=measure", "design.fitness = 'measure' (command line): must be a function by its name"),
        ("design.iterations=0", "design.iterations = 0"),
        ("design.model=", "design.model: no value"),
        ("design.llm=x", "design.llm = 'x' (command line): unknown key"),
        ("env=FrozenLake-v1", "the reward service takes one array of numbers"),
    ],
)
def test_what_is_wrong_with_a_search_is_one_line(override: str, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        load_config("cartpole-eureka", [override])
    assert said in str(refused.value)


def test_fitness_is_the_final_evaluations_mean_or_what_the_users_function_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"final_eval": {"mean": 3.25}}))
    assert Fitness(None).of(tmp_path) == 3.25
    with pytest.raises(NoFitness, match="None, and no finite number"):
        Fitness(None).of(tmp_path / "gone")
    (tmp_path / "own_fitness.py").write_text(
        "def measure(run):\n    text = (run / 'summary.json').read_text()\n    return float(len(text))\n"
        "def raises(run):\n    raise ValueError('not today')\n"
    )
    monkeypatch.chdir(tmp_path)
    fitness = Fitness("own_fitness:measure")
    assert fitness.of(tmp_path) == len((tmp_path / "summary.json").read_text())
    fitness.close()
    fitness = Fitness("own_fitness:raises")
    with pytest.raises(NoFitness, match=r"design.fitness: .*not today"):
        fitness.of(tmp_path)
    fitness.close()
    with pytest.raises(BadInput, match="own_fitness"):
        Fitness("own_fitness:gone")


@pytest.mark.long
def test_a_training_that_takes_too_long_is_ended_and_said(tmp_path: Path) -> None:
    config = config_of("cartpole-eureka", ["total_env_steps=100_000_000", "checkpoint.every_steps=1"])
    ended: dict[str, str | None] = {}
    trainings = Trainings(
        tmp_path, at_once=1, timeout_s=15, without=[], stop_requested=lambda: False, tell=lambda text: None
    )
    recipe = to_yaml(config.candidate("1-1", prompts.code_in(answer(UPRIGHT)) or ""))
    trainings.carry_out({"1-1": recipe}, ended.__setitem__)
    assert ended == {"1-1": "its training took longer than 15 s (design.train_timeout_s)"}
