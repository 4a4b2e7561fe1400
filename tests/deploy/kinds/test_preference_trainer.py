"""When labels are due, which segments are compared, how a trainer goes on from what is on the disk, and what a run from
preferences is refused for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rollcall.actors.trajectory_scoring import RewardEndpoint
from rollcall.cluster.errors import BadInput, RewardError, RewardUnavailable
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.steps import EnvSteps, Unroll
from rollcall.deploy.config.recipe.preference_config import RewardTrainConfig
from rollcall.deploy.config.recipe.preference_settings import PreferencesConfig, TextPreferencesConfig
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.kinds.control.compared_segments import Segments, first_model, segments_of, with_taken_actions
from rollcall.deploy.kinds.preference_trainer import LOOK_S, PreferenceTrainer, PreferenceTraining, TrainerReport
from rollcall.deploy.kinds.raters import Program
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.runtimes.preference_gate import SILENT_S
from rollcall.learners.maths.distributions import distribution_for
from rollcall.reward_service.labelling.leases import LeasedComparison
from rollcall.reward_service.labelling.protocol import Progress
from rollcall.reward_service.models.reward_models import SegmentArchitecture
from rollcall.reward_service.preferences.files import Preference, SegmentPair, read_preferences
from rollcall.reward_service.preferences.records import (
    TAKEN,
    Answer,
    Candidate,
    Comparison,
    SegmentCandidate,
    shows_taken_actions,
)
from rollcall.reward_service.protocol import ArrayField, ScoreItem, Segment
from rollcall.reward_service.scorers.judge_config import JudgeConfig

TRUE_REWARD = "rollcall.reward_service.raters.true_rewards:upright_and_centred"


def test_labels_are_due_in_rounds_most_of_them_early_and_all_of_them_before_the_end() -> None:
    config = PreferencesConfig(
        rater="synthetic", true_reward=TRUE_REWARD, total_labels=700, initial_labels=100, rounds=10
    )
    due = [config.labels_due(progress / 1000) for progress in range(1001)]
    assert due[0] == 100 and due[-1] == 700
    assert due == sorted(due)
    assert len(set(due)) == 10
    assert due[500] > 400  # a linear schedule would ask for 400 by the middle


def test_rounds_that_are_spread_over_half_a_run_are_all_there_by_its_middle() -> None:
    settings: dict[str, Any] = {"true_reward": TRUE_REWARD, "total_labels": 2400, "rounds": 4}
    whole, half = TextPreferencesConfig(**settings), TextPreferencesConfig(**settings, asked_until=0.5)
    steps = range(80)
    changes = {
        until: [s for s in steps if s and config.labels_due(s / 80) != config.labels_due((s - 1) / 80)]
        for until, config in ((1.0, whole), (0.5, half))
    }
    assert changes == {1.0: [20, 40, 60], 0.5: [10, 20, 30]}
    assert [half.labels_due(s / 80) for s in (0, 10, 20, 30, 79)] == [600, 1200, 1800, 2400, 2400]


def test_a_single_round_is_the_initial_labels() -> None:
    config = PreferencesConfig(rater="synthetic", true_reward=TRUE_REWARD, total_labels=50, initial_labels=50, rounds=1)
    assert {config.labels_due(p) for p in (0.0, 0.5, 1.0)} == {50}


def test_the_loops_loss_is_told_of_a_raters_errors_and_of_no_less_than_peoples() -> None:
    def noise(**settings: object) -> float:
        return PreferencesConfig.model_validate(
            {"rater": "synthetic", "true_reward": TRUE_REWARD, **settings}
        ).random_share

    assert noise() == 0.1
    assert noise(noise={"error_rate": 0.03}) == 0.1
    assert noise(noise={"error_rate": 0.2}) == 0.4
    assert noise(noise={"error_rate": 0.5}) < 1
    assert noise(noise={"error_rate": 0.2}, label_noise=0.3) == 0.3


def trajectory(steps: int, envs: int) -> GymTrajectory:
    flags = np.zeros((steps, envs), bool)
    positions = np.arange(steps, dtype=np.float32)[:, None, None] + 100 * np.arange(envs, dtype=np.float32)[:, None]
    return GymTrajectory(
        header=Header(ticket_id=0, attempt=1, epoch=1, policy_id="policy", actor_id="gym-0"),
        shard=0,
        incarnation=0,
        policy_version=0,
        unroll=Unroll(
            steps=EnvSteps(
                observations={"observation": positions},
                actions=np.zeros((steps, envs), np.int64),
                behaviour_logprobs=np.zeros((steps, envs), np.float32),
                rewards=np.zeros((steps, envs), np.float32),
                terminated=flags,
                truncated=flags,
                mask=~flags,
                episode_starts=flags,
            ),
            last_observations={"observation": positions[-1]},
            final_index=np.zeros((0, 2), np.int64),
            final_observations={"observation": np.zeros((0, 1), np.float32)},
        ),
    )


def test_stretches_do_not_cross_an_episodes_end_nor_hold_a_step_that_is_no_experience() -> None:
    whole = trajectory(12, 3)
    truncated, mask = whole.steps.truncated.copy(), whole.steps.mask.copy()
    truncated[3, 0] = True  # the last step of a stretch may be an episode's last
    truncated[5, 1] = True  # within the second stretch of env 1
    mask[8, 2] = False
    steps = replace(whole.steps, truncated=truncated, mask=mask)
    cut = replace(whole, unroll=replace(whole.unroll, steps=steps))
    found = list(segments_of(cut, 4, lambda actions: actions))
    firsts = [float(segment.observations.array()[0, 0]) for segment in found]
    assert firsts == [0, 4, 8, 100, 108, 200, 204]
    assert all(segment.num_steps == 4 for segment in found)


def test_a_run_from_preferences_knows_what_it_lacks() -> None:
    with pytest.raises(BadInput, match=r"preferences.*synthetic and a true_reward go together"):
        load_config("cartpole-preferences", ["preferences.rater=people"])
    with pytest.raises(BadInput, match=r"preferences.*reward"):
        load_config("cartpole-preferences", ["reward=my_module:score"])
    with pytest.raises(BadInput, match=r"segment_steps.*unroll_length"):
        load_config("cartpole-preferences", ["actors.unroll_length=16"])
    with pytest.raises(BadInput, match="one array"):
        load_config("cartpole-preferences", ["env=FrozenLake-v1"])
    assert isinstance(load_config("cartpole-preferences"), RunConfig)


def test_a_label_of_an_earlier_release_is_of_what_was_done_once_it_is_read() -> None:
    """It held the actions as they were sampled: before tanh, here."""
    to_env = distribution_for(gym.spaces.Box(-2.0, 2.0, (1,), np.float32), "tanh").to_env
    seen = ArrayField.of(np.zeros((3, 2), np.float32))
    sampled = np.array([[-9.0], [0.0], [0.5]], np.float32)
    segment = Segment(observations=seen, actions=ArrayField.of(sampled))
    before = SegmentPair((segment, segment), "left", rater="ada", details={"metadata": {"question": "?"}})
    after = with_taken_actions(before, to_env)
    for converted in after.segments:
        np.testing.assert_allclose(converted.actions.array(), 2 * np.tanh(sampled), atol=1e-6)
    assert (shows_taken_actions(before), shows_taken_actions(after)) == (False, True)
    assert (after.choice, after.rater, after.details["metadata"]["question"]) == ("left", "ada", "?")  # type: ignore[index, call-overload]


class Book:
    """Comparisons and labels as the service keeps them; who labels are people, when they are told to."""

    def __init__(self) -> None:
        self.waiting: dict[str, Comparison] = {}
        self.known: set[str] = set()
        self.log: list[Preference] = []

    def add(self, comparisons: Iterable[Comparison]) -> int:
        new = {c.id: c for c in comparisons if c.id not in self.known}
        self.known |= new.keys()
        self.waiting |= new
        return len(new)

    def label(self, count: int = 1, **_: object) -> None:
        for id_ in list(self.waiting)[:count]:
            first, second = self.waiting.pop(id_).candidates
            assert isinstance(first, SegmentCandidate) and isinstance(second, SegmentCandidate)
            details = {"metadata": dict(TAKEN)}
            self.log.append(SegmentPair((first.segment, second.segment), "left", first.env_id, details=details))

    def lease(self, rater: str, *, session: str = "") -> LeasedComparison | None:
        token = next(iter(self.waiting), None)
        return None if token is None else LeasedComparison(token, self.waiting[token].candidates)

    def progress(self, rater: str) -> Progress:
        return Progress(comparisons=len(self.known), labels=len(self.log), waiting=len(self.waiting), today=0)

    def labelled(self, after: int = 0) -> tuple[list[Preference], int]:
        found = self.log[after : after + 5]
        return found, after + len(found)


class Desk:
    """A trainer, and what becomes of its models."""

    def __init__(self, directory: Path, book: Book, *, raters: Sequence[Program] = (), **settings: Any) -> None:
        self.trained: list[str] = []
        self.served: list[str] = []
        self.paused_s = self.now = 0.0
        self.fails = False
        architecture = SegmentArchitecture(observation_shape=(1,), num_actions=2, members=1, hidden_sizes=(4,))
        first_model(directory, architecture, seed=0)
        config = PreferencesConfig(segment_steps=4, **settings)
        training = PreferenceTraining(
            config=config,
            endpoint=RewardEndpoint("http://nobody", "", "reward", 60.0),
            directory=directory,
            total_steps=10,
            compared=Segments(config, architecture, lambda actions: actions, "CartPole-v1", 3),
            raters=lambda: raters,
        )
        labels: Any = book
        self.trainer = PreferenceTrainer(
            training,
            self.train,
            labels=labels,
            serve=self.serve,
            clock=lambda: self.now,
            pause=self.pause,
            judge=lambda model, items: [0.0] * len(items),
        )

    def train(self, config: RewardTrainConfig, directory: Path, *, on_step: Callable[[], None]) -> Path | None:
        if self.fails:
            raise RuntimeError("killed while it trains")
        self.trained.append(directory.name)
        on_step()
        (directory / "model").mkdir(parents=True, exist_ok=True)
        return directory / "model"

    def serve(self, model: Path, items: Sequence[ScoreItem]) -> str:
        self.served.append(model.parent.name)
        return "v"

    def pause(self, seconds: float) -> None:
        self.paused_s += seconds
        self.now += seconds


def go_on(desk: Desk, book: Book, due: int) -> TrainerReport:
    """People label whatever they are asked, and the trainer is told again and again that so many labels are due."""
    for _ in range(100):
        report = desk.trainer.advance(due)
        book.label(due)
    return report


def test_people_are_asked_once_and_waited_for_and_their_labels_become_a_model_in_service(tmp_path: Path) -> None:
    book = Book()
    desk = Desk(tmp_path, book, initial_labels=8, total_labels=10)
    desk.trainer.offer(trajectory(12, 4))
    assert desk.trainer.advance(8) == TrainerReport(num_labels=0, learnt=0)
    asked = len(book.known)
    assert 4 < asked <= 8 and desk.paused_s == LOOK_S
    book.label(3)
    assert desk.trainer.advance(8) == TrainerReport(num_labels=3, learnt=0)
    assert len(book.known) == asked and desk.trained == []  # nobody is asked for more while they are at it
    while (report := desk.trainer.advance(8)).learnt < 8:
        book.label(2)
    assert report.num_labels >= 8 and desk.served == desk.trained == [f"labels-{report.num_labels:05d}"]
    assert (tmp_path / "current").resolve() == (tmp_path / desk.served[0] / "model").resolve()
    assert len(read_preferences(tmp_path / f"{desk.served[0]}.jsonl")) == report.num_labels
    assert desk.trainer.beats > 0


def test_a_judge_that_takes_all_its_time_for_each_answer_is_not_taken_for_one_that_hangs(tmp_path: Path) -> None:
    heard: list[int] = []

    class Slow:
        name = "slow"

        def answer(self, candidates: Sequence[Candidate]) -> Answer:
            heard.append(desk.trainer.beats)
            return Answer(choice="left")

    desk = Desk(tmp_path, Book(), raters=[Program(Slow())], initial_labels=8, total_labels=10)
    desk.trainer.offer(trajectory(12, 4))
    desk.trainer.advance(8)
    assert len(heard) > 4
    answers_a_beat = max(heard.count(beats) for beats in heard)
    assert answers_a_beat * JudgeConfig.model_fields["deadline_s"].default < SILENT_S


def test_a_judge_that_is_away_for_too_long_ends_the_run_with_a_line_that_says_how_to_go_on(tmp_path: Path) -> None:
    class Away:
        name, answers = "judge", 3

        def answer(self, candidates: Sequence[Candidate]) -> Answer:
            self.answers -= 1
            if self.answers < 0:
                raise RewardUnavailable("http://127.0.0.1:9/v1: connection refused")
            return Answer(choice="left")

    book, away = Book(), Away()
    desk = Desk(tmp_path, book, raters=[Program(away)], initial_labels=8, total_labels=10)
    desk.trainer.offer(trajectory(12, 4))
    with pytest.raises(RewardUnavailable) as raised:
        go_on(desk, book, 8)
    (line,) = str(raised.value).splitlines()
    assert line == (
        "the rater judge does not answer: http://127.0.0.1:9/v1: connection refused; all labels so far are kept: see "
        "that it answers, then go on with rollcall resume"
    )
    assert len(book.log) == 3
    away.answers = 100  # it is there again: another trainer asks for the rest, and none twice
    again = Desk(tmp_path, book, raters=[Program(away)], initial_labels=8, total_labels=10)
    again.trainer.offer(trajectory(12, 4))
    while not again.served:
        assert again.trainer.advance(8).num_labels <= 8
    assert len(book.log) >= 8 and len(book.known) == len(book.log) + len(book.waiting)


def test_a_trainer_that_follows_a_killed_one_loses_no_label_and_asks_for_none_again(tmp_path: Path) -> None:
    book = Book()
    first = Desk(tmp_path, book, initial_labels=6, total_labels=10)
    first.trainer.offer(trajectory(12, 4))
    first.fails = True
    with pytest.raises(RuntimeError, match="killed"):
        go_on(first, book, 6)
    served_before = (tmp_path / "current").resolve()
    asked = len(book.known)
    second = Desk(tmp_path, book, initial_labels=6, total_labels=10)
    assert (tmp_path / "current").resolve() == served_before  # the newest model stays in service meanwhile
    report = second.trainer.advance(6)  # without anything to compare: it has been asked already
    assert (report.num_labels, report.learnt) == (len(book.log), 6)
    assert len(book.known) == asked and second.served == second.trained == [f"labels-{len(book.log):05d}"]


def test_a_run_that_was_stopped_while_a_model_trained_serves_none_of_it(tmp_path: Path) -> None:
    book = Book()
    desk = Desk(tmp_path, book, initial_labels=4, total_labels=10)
    desk.trainer.offer(trajectory(12, 4))
    desk.trainer._train = lambda config, directory, *, on_step: None
    report = go_on(desk, book, 4)
    assert report.num_labels >= 4 and report.learnt == 0 and desk.served == []


def test_too_little_to_compare_is_said_and_not_waited_for_for_ever(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Book(), initial_labels=4, total_labels=10)
    with pytest.raises(RewardError, match=r"no two stretches of 4 steps.*fixed_episode_steps"):
        go_on(desk, Book(), 4)
    assert 20 <= desk.now < 25
    book = Book()
    desk = Desk(tmp_path, book, initial_labels=4, total_labels=10)
    desk.trainer.offer(trajectory(8, 1))  # two segments: one pair
    with pytest.raises(RewardError, match="2 stretches give no more pairs to compare than 1, and 4 are due"):
        go_on(desk, book, 4)
