"""What raters of a language run are asked in which round, how its labels are divided, and what of them is booked."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rollcall.actors.language.text_codec import TextCodec
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.deploy.cli.main import main
from rollcall.deploy.config.recipe.preference_settings import TextPreferencesConfig
from rollcall.deploy.kinds.language.compared_texts import PROMPTS, WHOLE_S, ComparedTexts, Texts
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.preference_trainer import Wanted
from rollcall.deploy.kinds.raters import labelling_of, programs
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.preferences.fresh_labels import FreshLabels, agreement_of
from rollcall.deploy.preferences.held_out import in_turn
from rollcall.deploy.preferences.round_book import Round, book_round, read_rounds, rounds_before
from rollcall.deploy.report.round_report import table
from rollcall.deploy.rundir.earlier_runs import read_run
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.reward_service.labelling.store import open_labelling
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.models.reward_model_files import RewardModelCard, new_text_model, save_text_model
from rollcall.reward_service.models.reward_models import Statistics
from rollcall.reward_service.preferences.files import Preference, PreferencePair, Ranking, read_preferences
from rollcall.reward_service.preferences.records import Comparison, TextCandidate, preference_of
from rollcall.reward_service.protocol import Message, ScoreItem
from rollcall.reward_service.raters.rater import label_all
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater
from rollcall.reward_service.raters.synthetic_rater_config import SyntheticRaterConfig
from rollcall.reward_service.scorer import Score
from rollcall.reward_service.scorers.reward_model_scorer import build_reward_model_scorer
from tests.deploy.kinds.language.test_text_preferences import SMALL, TEMPLATE, TRUE_REWARD, Letters
from tests.needs import require_module
from tests.reward_service.scorers.judge_server import JudgeServer
from tests.reward_service.scorers.judge_server import asked as said_to
from tests.runs import config_of

transformers = require_module("transformers")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("start") / "tiny"
    write_tiny_model(directory, alphabet="<=>abcde", seed=0, **SMALL)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def desk(start: Path, clock: Clock | None = None, *, batch: int = 2, **settings: Any) -> ComparedTexts:
    """Of ten learner steps: with two rounds the second is due at version 5."""
    values = {"true_reward": TRUE_REWARD, "rounds": 2, "total_labels": 12, **settings}
    texts = Texts(
        config=TextPreferencesConfig(**values),
        task=Letters(chat=False),  # type: ignore[arg-type]
        codec=TextCodec(start),
        start=start,
        sampling=SamplingConfig(max_tokens=6),
        batch=batch,
        total_steps=10,
        seed=3,
    )
    return texts(clock or Clock())


def answered(start: Path, ticket: int, version: int, texts: Sequence[str], *, row: int = 0) -> LMTrajectory:
    """What the policy of this version said to a row."""
    codec, prompt = TextCodec(start), Letters(chat=False).rows("train")[row].prompt
    before = codec.prompt(prompt)
    tokens: list[int] = []
    mask: list[bool] = []
    offsets, spans = [0], []
    for text in texts:
        said = codec.encode(text)
        spans.append((len(tokens) + len(before), len(tokens) + len(before) + len(said), version))
        tokens += [*before, *said]
        mask += [False] * len(before) + [True] * len(said)
        offsets.append(len(tokens))
    zeros = np.zeros(len(tokens), np.float32)
    return LMTrajectory(
        header=Header(ticket_id=ticket, attempt=1, epoch=1, policy_id="policy", actor_id="lm-0"),
        row=row,
        sample_offsets=np.array(offsets, np.int64),
        token_ids=np.array(tokens, np.int32),
        loss_mask=np.array(mask),
        tokens=SampledTokens(behaviour_logprobs=zeros),
        version_spans=np.array(spans, np.int64),
        rewards=np.zeros(len(texts), np.float32),
        finish_reasons=("stop",) * len(texts),
    )


def texts_of(comparisons: Sequence[Comparison] | None) -> list[set[str]]:
    assert comparisons is not None
    return [{c.response for c in comparison.candidates if isinstance(c, TextCandidate)} for comparison in comparisons]


SECOND = Wanted(missing=6, labels=6, due=12, tries=0)


def test_the_first_round_asks_about_what_version_0_writes_and_the_same_again_after_a_restart(start: Path) -> None:
    wanted = Wanted(missing=6, labels=0, due=6, tries=0)
    found = desk(start).choose(wanted, model=None)
    assert found is not None and len({comparison.id for comparison in found}) == 6
    beats: list[int] = []
    again = desk(start).choose(replace(wanted, missing=2, labels=4), model=None, beat=lambda: beats.append(1))
    assert len(beats) >= 6, "sampling may take long: that it goes on is told with each prompt"
    assert again is not None and [c.id for c in again] == [c.id for c in found]
    more = desk(start).choose(replace(wanted, missing=2, labels=4, tries=1), model=None)
    assert more is not None and [c.id for c in more][:6] == [c.id for c in found] and len(more) == 8


def test_a_later_round_waits_for_a_whole_batch_of_the_newest_versions_and_asks_about_it_alone(start: Path) -> None:
    clock = Clock()
    compared = desk(start, clock)
    compared.offer(answered(start, 0, 4, ["a", "b", "c", "d"]))  # of the round before
    assert compared.choose(SECOND, model=None) is None
    compared.offer(answered(start, 1, 5, ["aa", "bb", "cc", "dd"]))
    assert compared.choose(SECOND, model=None) is None
    compared.offer(answered(start, 2, 5, ["ab", "ba", "aa", "bb"], row=1))
    found = compared.choose(SECOND, model=None)
    assert found is not None and len(found) == 6
    asked = texts_of(found)
    assert all(len(one) == 2 for one in asked)
    assert set.union(*asked) <= {"aa", "bb", "cc", "dd", "ab", "ba"}
    assert compared.newest_version == 5
    assert all(dict(c.metadata)["question"] == "Which one is better?" for c in found)
    clock.now = 1000.0
    again = desk(start)  # of a run that was killed: its batch is made again, in whatever order it comes
    again.offer(answered(start, 2, 5, ["ab", "ba", "aa", "bb"], row=1))
    again.offer(answered(start, 1, 5, ["aa", "bb", "cc", "dd"]))
    assert [c.id for c in again.choose(SECOND, model=None) or ()] == [c.id for c in found]


def test_a_batch_of_which_no_more_comes_is_enough_and_older_samples_make_up_for_what_it_lacks(start: Path) -> None:
    clock = Clock()
    compared = desk(start, clock)
    compared.offer(answered(start, 0, 4, ["a", "b", "c", "d"]))
    compared.offer(answered(start, 1, 5, ["aa", "bb", "bb", "bb"]))
    assert compared.choose(SECOND, model=None) is None
    clock.now = WHOLE_S
    asked = texts_of(compared.choose(SECOND, model=None))
    assert len(asked) == 6
    assert any(one & {"aa", "bb"} for one in asked)


def test_each_response_is_compared_as_often_as_the_others(start: Path) -> None:
    compared = desk(start, total_labels=24)
    words = [a + b for a in "abcde" for b in "abcde"][:16]
    compared.offer(answered(start, 1, 5, words[:8]))
    compared.offer(answered(start, 2, 5, words[8:]))
    asked = texts_of(compared.choose(Wanted(missing=12, labels=12, due=24, tries=0), model=None))
    counts = Counter(text for one in asked for text in one)
    assert len(asked) == 12 and sum(counts.values()) == 24
    assert max(counts.values()) <= 2  # twelve pairs of sixteen: a pass of eight, and a half


def test_what_is_ranked_at_once_is_of_one_prompt_and_has_no_response_twice(start: Path) -> None:
    compared = desk(start, candidates=4, batch=1)
    compared.offer(answered(start, 1, 5, ["aa", "bb", "cc", "dd", "ee", "aa", "aa", "ab"]))
    asked = texts_of(compared.choose(SECOND, model=None))
    assert {len(one) for one in asked} <= {2, 4} and any(len(one) == 4 for one in asked)
    first = desk(start, candidates=3).choose(Wanted(missing=6, labels=0, due=6, tries=0), model=None)
    assert {len(one) for one in texts_of(first)} <= {2, 3}


def test_of_what_is_considered_that_is_asked_on_which_the_ensemble_disagrees_most(start: Path, tmp_path: Path) -> None:
    """Two heads of opposite mind about the body's state, and one that says 0: they disagree most where responses are
    furthest apart."""
    module = new_text_model(start, seed=0, members=3)
    with torch.no_grad():
        head: Any = module.model.score
        head.weight.copy_(torch.stack([torch.ones(16), -torch.ones(16), torch.zeros(16)]))
    card = RewardModelCard(kind="text", statistics=Statistics(mean=(0.0,) * 3, std=(1.0,) * 3))
    save_text_model(module, start, tmp_path / "model", card)
    compared = desk(start, members=3, selection=5, batch=1)
    words = ["a", "b", "ab", "ba", "aab", "bba", "cc", "dd"]
    compared.offer(answered(start, 1, 5, words))
    chosen = compared.choose(SECOND, model=tmp_path / "model")
    every = compared.choose(replace(SECOND, due=12, missing=6, tries=4), model=None)
    assert chosen is not None and every is not None and len(chosen) == 6 and len(every) > 20
    scorer: Any = build_reward_model_scorer(RewardModelConfig(path=str(tmp_path / "model")))

    def apart(comparison: Comparison) -> float:
        items = [
            ScoreItem(id=str(n), prompt=c.prompt, response=c.response)
            for n, c in enumerate(comparison.candidates)
            if isinstance(c, TextCandidate)
        ]
        one, other = scorer.by_member(items)[0].tolist()
        return abs(one - other)

    assert [apart(c) for c in chosen] == sorted(map(apart, chosen), reverse=True)
    assert sum(map(apart, chosen)) / 6 > 1.2 * sum(map(apart, every)) / len(every)
    (score,) = scorer.score([ScoreItem(id="a", prompt="aa", response="b")])
    assert isinstance(score, Score) and score.value == pytest.approx(0.0, abs=1e-6)
    assert score.components["disagreement"] > 0


def test_two_raters_of_each_comparison_are_asked_half_as_many(start: Path) -> None:
    compared = desk(start, labels_per_comparison=2)
    assert len(compared.choose(Wanted(missing=3, labels=0, due=6, tries=0), model=None) or ()) == 3


def test_only_so_many_prompts_are_remembered(start: Path) -> None:
    compared = desk(start)
    one = answered(start, 0, 5, ["a", "b"])
    for ticket in range(PROMPTS + 5):
        compared.offer(replace(one, header=replace(one.header, ticket_id=ticket)))
    assert len(compared._answered) == PROMPTS


# How labels are divided.


@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1), st.lists(st.sampled_from("abcdez")))
def test_what_is_held_out_stays_so_whatever_comes_later(first: list[str], later: list[str]) -> None:
    sides = in_turn(first, fraction=0.1)
    assert in_turn([*first, *later], fraction=0.1)[: len(first)] == sides
    assert sides[0]
    held, learnt = ({name for name, side in zip(first, sides, strict=True) if side is s} for s in (True, False))
    assert not held & learnt
    assert len(held) == -(-len({*first}) // 10)


def test_a_round_learns_from_all_labels_but_those_of_prompts_that_are_held_out_and_goes_on_from_the_last(
    start: Path, tmp_path: Path
) -> None:
    pairs: list[Preference] = [
        PreferencePair(prompt=f"p{n % 4}", chosen=f"a{n}", rejected="b", details={"comparison": str(n)})
        for n in range(12)
    ]
    compared = desk(start)
    config = compared.run_config("labels-00012", tmp_path / "labels-00012.jsonl", pairs, new=12, last=None)
    assert config.data.train is not None and config.data.eval is not None
    learnt, held = read_preferences(Path(config.data.train)), read_preferences(Path(config.data.eval))
    assert {p.prompt for p in held} == {"p0"} and len(held) == 3 and len(learnt) == 9  # type: ignore[union-attr]
    assert config.model.start == str(start)  # type: ignore[union-attr]
    assert config.total_learner_steps == 1  # 2 passes over 12, in batches of 64
    later = compared.run_config("x", tmp_path / "x.jsonl", pairs, new=4, last=tmp_path / "model")
    assert later.model.start == str(tmp_path / "model")  # type: ignore[union-attr]
    alone = compared.run_config("y", tmp_path / "y.jsonl", pairs[::4], new=3, last=None)  # all of one prompt
    assert len(read_preferences(Path(alone.data.eval or ""))) == 1


# What a rater who is a program says.


def test_a_rater_whose_noise_goes_by_what_is_compared_says_the_same_again_and_is_wrong_as_often() -> None:
    """Of 2,000 comparisons a fifth is turned round: five deviations are 0.045."""
    config = SyntheticRaterConfig(error_rate=0.2)

    def rater() -> SyntheticRater:
        return SyntheticRater("r", lambda prompt, text: float(text.count("a")), config, says_it_again=True)

    pairs = [[TextCandidate(prompt=str(n), response=text) for text in ("aa", "b")] for n in range(2000)]
    said = [rater().answer(pair).choice for pair in pairs]
    one = rater()
    assert [one.answer(pair).choice for pair in pairs] == said
    turned = ["left" if one.answer(pair[::-1]).choice == "right" else "right" for pair in pairs]
    assert turned == said, "whatever is shown first"
    assert said.count("right") / 2000 == pytest.approx(0.2, abs=0.045)


def test_a_judge_and_a_known_reward_are_asked_about_the_same_comparisons_the_judge_side_by_side(
    tmp_path: Path,
) -> None:
    """The judge likes what has the letter a twice in a row or more, whatever stands first."""

    def reply(body: dict[str, Any]) -> str:
        time.sleep(0.05)
        return "Better: A" if "\naa" in said_to(body).partition("response B")[0] else "Better: B"

    server = JudgeServer()
    server.reply = reply
    try:
        config = TextPreferencesConfig.model_validate(
            {
                "rater": ["synthetic", "judge"],
                "true_reward": TRUE_REWARD,
                "judge": {"url": server.url, "model": "m", "concurrency": 4},
            }
        )
        asked = [
            Comparison.of([TextCandidate(prompt=f"p{n}", response=text) for text in ("a" * (n + 2), "b")])
            for n in range(12)
        ]
        with open_labelling(tmp_path, labelling_of(config)) as store:
            store.add(asked)
            for program in programs(config):
                label_all(program.rater, store, at_once=program.at_once)
                program.close()
            found = [preference_of(comparison, label) for comparison, label in store.standing()]
    finally:
        server.close()
    assert Counter(item.rater for item in found if item is not None) == {"synthetic": 12, "judge": 12}
    assert all(isinstance(item, PreferencePair) and item.rejected == "b" for item in found)
    agreement = agreement_of([item for item in found if item is not None])
    assert agreement is not None and (agreement["shared"], agreement["agreement"]) == (12, 1.0)
    assert 1 < server.most_at_once <= 4


def test_what_a_judge_says_nothing_of_that_can_be_read_is_waited_for_by_nobody(tmp_path: Path) -> None:
    """Temperature 0: it would say the same again, and the round would never be complete."""
    server = JudgeServer()
    server.reply = lambda body: "Both have merits." if "p1" in said_to(body) else "Better: A"
    config = TextPreferencesConfig.model_validate({"rater": "judge", "judge": {"url": server.url, "model": "m"}})
    (program,) = programs(config)
    try:
        with open_labelling(tmp_path, labelling_of(config)) as store:
            store.add(Comparison.of([TextCandidate(prompt=f"p{n}", response=text) for text in "ab"]) for n in range(3))
            label_all(program.rater, store, at_once=program.at_once)
            assert store.progress("loop", since=datetime.now(UTC)).waiting == 0
            assert sum(preference_of(*found) is not None for found in store.standing()) == 2
    finally:
        program.close()
        server.close()


def test_a_true_reward_is_told_a_chat_tasks_prompt_as_its_row_has_it() -> None:
    config = TextPreferencesConfig(true_reward=f"{__name__}:echoed")
    (program,) = programs(config)
    asked = (Message(role="user", content="aa"),)
    assert program.rater.answer([TextCandidate.of(asked, "aa"), TextCandidate.of(asked, "b")]).choice == "left"


def echoed(prompt: Any, response: str) -> float:
    return float(prompt == response)


def test_a_language_run_of_an_earlier_release_has_as_many_labels_as_it_had_pairs(tmp_path: Path) -> None:
    text = load_config("rlhf-reviews", ["preferences.rounds=1", "preferences.total_labels=2500"]).to_yaml()
    assert "total_labels: 2500" in text
    (tmp_path / "config.yaml").write_text(text.replace("total_labels: 2500", "pairs: 2500"))
    config = config_of(read_run(tmp_path)[0])
    assert (config.preferences.total_labels, config.preferences.before_all) == (2500, True)


# What is booked.


def test_new_labels_say_how_right_a_model_is_a_ranking_by_all_its_pairs_and_ties_not_at_all() -> None:
    labels: list[Preference] = [
        PreferencePair(prompt="p", chosen="aa", rejected="b"),
        PreferencePair(prompt="p", chosen="b", rejected="aaa", tie=True),
        Ranking("p", ("b", "aa", "a"), (0, 1, 1)),
    ]

    def judge(model: Path, items: Sequence[ScoreItem]) -> list[float]:
        return [float((item.response or "").count("a")) for item in items]

    fresh = FreshLabels(labels, judge)
    found = fresh.accuracy(Path("model"))
    assert found is not None and (found.n, found.accuracy) == (3, pytest.approx(1 / 3))
    assert fresh.accuracy(None) is None
    assert FreshLabels(labels[1:2], judge).accuracy(Path("model")) is None
    assert len({item.id for item in fresh.items()}) == len(fresh.items()) == 4


def test_raters_who_were_asked_the_same_agree_by_what_they_said_of_each_pair() -> None:
    def ranked(rater: str, ranks: tuple[int, ...]) -> Preference:
        return Ranking("p", ("a", "b", "c"), ranks, rater=rater)

    assert agreement_of([ranked("ada", (0, 1, 2))]) is None
    found = agreement_of([ranked("ada", (0, 1, 2)), ranked("bea", (0, 2, 1))])
    assert found is not None and (found["shared"], found["agreement"]) == (3, pytest.approx(2 / 3))
    shown_otherwise = [
        PreferencePair(prompt="p", chosen="a", rejected="b", rater="ada"),
        PreferencePair(prompt="p", chosen="b", rejected="a", rater="bea"),
    ]
    disagreed = agreement_of(shown_otherwise)
    assert disagreed is not None and disagreed["agreement"] == 0.0


def booked(directory: Path, labels: int, *, swapped_in: bool = True, version: int = 0) -> None:
    right = {"accuracy": 0.75, "low": 0.6, "high": 0.85, "n": 40}
    book_round(directory, Round(labels, 10, version, f"{labels:016x}", swapped_in, right, None, None))


def test_a_round_is_booked_once_and_a_line_that_was_cut_short_is_left_out_and_written_again(tmp_path: Path) -> None:
    booked(tmp_path, 10)
    booked(tmp_path, 10, version=3)
    booked(tmp_path, 20, version=2)
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"labels": 30')
    assert [(line["labels"], line["policy_version"]) for line in read_rounds(tmp_path)] == [(10, 0), (20, 2)]
    booked(tmp_path, 30, version=4)  # made again after the kill
    assert [(line["labels"], line["policy_version"]) for line in read_rounds(tmp_path)] == [(10, 0), (20, 2), (30, 4)]


def test_a_model_goes_on_from_one_that_is_whole_and_was_taken(tmp_path: Path) -> None:
    for labels, status in ((10, "completed"), (20, "completed"), (30, "failed"), (40, "completed")):
        (tmp_path / f"labels-{labels:05d}" / "model").mkdir(parents=True)
        (tmp_path / f"labels-{labels:05d}" / "summary.json").write_text(json.dumps({"status": status}))
    booked(tmp_path, 20, swapped_in=False)
    assert [labels for labels, _ in rounds_before(tmp_path, 40)] == [10]


def test_the_report_has_a_row_for_each_round_and_no_column_of_which_nothing_is_known(tmp_path: Path) -> None:
    assert table(tmp_path, []) == ""
    models = tmp_path / "reward_models"
    models.mkdir()
    booked(models, 10)
    booked(models, 20, swapped_in=False, version=2)
    records = [{"step": step, "kl_reference": 0.1 * step, "reward_task": 0.5 + 0.1 * step} for step in range(4)]
    text = table(tmp_path, records)
    assert "75.0% [60.0%, 85.0%] of 40" in text or "75.0 %" in text
    assert text.count("<tr>") == 3
    assert "raters agree" not in text and "held-out" not in text
    assert "0.100" in text or "0.1<" in text  # of step 1, the last one of the first round
    assert "0.8" in text and ", kept" in text and "was not taken" in text


# What is refused.


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "who is asked"),
        ({"file": "a.jsonl", "true_reward": "m:f"}, "either a file"),
        ({"file": "a.jsonl", "rounds": 2}, "rounds=2"),
        ({"rater": "synthetic"}, "true_reward go together"),
        ({"rater": "people", "true_reward": "m:f"}, "true_reward go together"),
        ({"rater": ["judge", "people"]}, "judge go together"),
        ({"rater": ["people", "people"]}, "once at the most"),
        ({"rater": "people", "candidates": 10}, "less than or equal to 9"),
        ({"rater": "judge", "judge": {"model": "m", "url": "http://j/v1"}, "candidates": 3}, "a judge compares two"),
        ({"rater": "judge", "judge": {"model": "m"}}, "give its url"),
        ({"true_reward": "m:f", "initial_labels": 2000}, "initial_labels=2000"),
        ({"true_reward": "m:f", "selection": 5}, "set members=3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TextPreferencesConfig.model_validate(settings)


def test_each_round_asks_for_as_many_labels_and_the_first_before_the_first_step() -> None:
    config = TextPreferencesConfig(true_reward="m:f", total_labels=2400, rounds=4)
    due = [config.labels_due(step / 80) for step in range(80)]
    assert Counter(due) == {600: 20, 1200: 20, 1800: 20, 2400: 20}
    assert config.random_share == 0.0
    assert TextPreferencesConfig(rater=("people",)).random_share == 0.1
    assert not config.before_all and TextPreferencesConfig(true_reward="m:f").before_all
    assert not TextPreferencesConfig(rater=("people",)).before_all
    judge = {"model": "m", "url": "http://j/v1"}
    several = TextPreferencesConfig.model_validate(
        {"rater": ["people", "judge", "synthetic"], "true_reward": "m:f", "judge": judge}
    )
    assert several.asked_about_each == 3


def test_people_are_asked_in_place_of_a_recipes_raters_where_it_has_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "arithmetic-grpo", "--people"]) == 2
    assert "--people (command line): arithmetic-grpo asks no raters" in capsys.readouterr().err
    config = config_of("rlhf-reviews")
    assert (config.preferences.rounds, config.preferences.total_labels) == (4, 2400)


def test_a_conversation_is_not_what_raters_are_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "calculator-grpo", "preferences.rater=people"]) == 2
    assert "several turns" in capsys.readouterr().err
    with pytest.raises(BadInput):
        load_config("calculator-grpo", ["preferences.rater=nobody"])


def test_the_plan_counts_the_process_that_trains_reward_models_while_the_policy_learns(tmp_path: Path) -> None:
    def roles(*overrides: str) -> set[str]:
        config = config_of("rlhf-reviews", ["runtime=ray", *overrides])
        return {role.name for role in LanguageFactory(config, tmp_path).needs().roles}

    assert roles() - roles("preferences.rounds=1") == {"preference trainer"}
