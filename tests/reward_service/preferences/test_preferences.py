"""The preference file format, comparisons and labels as records, agreement between raters, and synthetic raters."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.arrays import Array
from rollcall.reward_service.preferences.agreement import (
    agreement,
    cohen_kappa,
    kappas,
    krippendorff_alpha,
    raw_agreement,
)
from rollcall.reward_service.preferences.files import (
    PreferencePair,
    Ranking,
    SegmentPair,
    preference_line,
    read_preferences,
    write_preferences,
)
from rollcall.reward_service.preferences.records import (
    Comparison,
    Label,
    SegmentCandidate,
    TextCandidate,
    comparison_of,
    preference_of,
)
from rollcall.reward_service.protocol import ArrayField, Message, Segment
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater, rank, reward_of
from rollcall.reward_service.raters.synthetic_rater_config import SyntheticRaterConfig

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def segment(*observations: float, dtype: type = np.float32) -> Segment:
    seen: Array = np.array([[value, 0.0] for value in observations], dtype)
    return Segment(observations=ArrayField.of(seen), actions=ArrayField.of(np.arange(len(seen))))


def label(comparison: str, rater: str, choice: str | None, **given: object) -> Label:
    values = {"comparison_id": comparison * 32, "rater": rater, "choice": choice, "shown": (0, 1), "created_at": NOW}
    return Label.model_validate(values | {"duration_s": 1.0, "token": f"{comparison}-{rater}"} | given)


# The file format.

LINES: dict[str, dict[str, Any]] = {
    "pair": {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.5, "group": "g", "rater": "ada"},
    "tie": {"prompt": "p", "chosen": "a", "rejected": "a", "tie": True},
    "messages": {"messages": [{"role": "user", "content": "hä?"}], "chosen": "a", "rejected": "b"},
    "ranking": {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 0, 1]},
    "segments": {"segments": [segment(1).model_dump(mode="json")] * 2, "choice": "right", "env": "CartPole-v1"},
    "more": {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 9, "nested": {"x": [1, None]}},
}


def write(path: Path, *lines: object) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["file.jsonl", "file.jsonl.gz"])
def test_what_is_read_is_written_back_as_the_same_preferences(tmp_path: Path, name: str) -> None:
    read = read_preferences(write(tmp_path / name, *LINES.values()))
    assert write_preferences(tmp_path / f"again-{name}", read) == len(LINES)
    assert read_preferences(tmp_path / f"again-{name}") == read
    assert [type(preference) for preference in read] == [PreferencePair] * 3 + [Ranking, SegmentPair, PreferencePair]
    assert read[0] == PreferencePair("p", "a", "b", 0.5, False, "g", "ada")
    assert read[2].prompt == (Message(role="user", content="hä?"),)  # type: ignore[union-attr]
    assert read[5].details == {"score_chosen": 9, "nested": {"x": [1, None]}}
    assert read[0].source == f"{tmp_path / name}:1"


def test_the_prompt_of_an_hh_pair_is_what_both_begin_with_up_to_the_assistants_turn(tmp_path: Path) -> None:
    shared = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: Bye"
    late = {"chosen": f"{shared}\n\nAssistant: So long", "rejected": f"{shared}\n\nAssistant: So?"}
    early = {
        "chosen": "\n\nHuman: A\n\nAssistant: one\n\nHuman: B\n\nAssistant: two",
        "rejected": "\n\nHuman: A\n\nAssistant: eins",
    }
    first, second = read_preferences(write(tmp_path / "hh.jsonl", late, early))
    assert isinstance(first, PreferencePair) and isinstance(second, PreferencePair)
    assert (first.prompt, first.chosen, first.rejected) == (f"{shared}\n\nAssistant:", " So long", " So?")
    assert second.prompt == "\n\nHuman: A\n\nAssistant:"
    assert (second.chosen, second.rejected) == (" one\n\nHuman: B\n\nAssistant: two", " eins")


SEGMENT = segment(1).model_dump(mode="json")
OTHER_SEGMENT = segment(1, dtype=np.float64).model_dump(mode="json")
CUT = {"dtype": "int64", "shape": [1], "content": ""}
BAD = {
    "no JSON": ('{"prompt": "p", "chosen"', "not JSON"),
    "no object": ("[1]", "not an object"),
    "nothing known": ({"text": "p"}, "none of"),
    "no rejected": ({"prompt": "p", "chosen": "a"}, "rejected"),
    "two prompts": (LINES["messages"] | {"prompt": "p"}, "one of"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "Assistant"),
    "the same": ({"prompt": "p", "chosen": "a", "rejected": "a"}, "the same"),
    "a number": ({"prompt": "p", "chosen": 3, "rejected": "a"}, "chosen"),
    "a wrong margin": ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, "margin"),
    "a margin of NaN": ('{"prompt": "p", "chosen": "a", "rejected": "b", "margin": NaN}', "NaN"),
    "a misspelt margin": ({"prompt": "p", "chosen": "a", "rejected": "b", "margn": 1}, "did you mean 'margin'"),
    "a tie with a margin": ({"prompt": "p", "chosen": "a", "rejected": "b", "tie": True, "margin": 1}, "tie"),
    "ranks too few": ({"prompt": "p", "responses": ["a", "b"], "ranks": [0]}, "2 responses and 1 ranks"),
    "ranks with a gap": ({"prompt": "p", "responses": ["a", "b"], "ranks": [0, 2]}, "gap"),
    "responses twice": ({"prompt": "p", "responses": ["a", "a"], "ranks": [0, 1]}, "the same"),
    "three segments": ({"segments": [segment(1).model_dump(mode="json")] * 3, "choice": "left"}, "segments"),
    "a segment of NaN": ({"segments": [segment(math.nan).model_dump(mode="json")] * 2, "choice": "left"}, "finite"),
    "a segment cut short": ({"segments": [SEGMENT, SEGMENT | {"actions": CUT}], "choice": "left"}, "8 bytes"),
    "segments of two envs": ({"segments": [SEGMENT, OTHER_SEGMENT], "choice": "left"}, "float64"),
    "an unknown choice": ({"segments": [segment(1).model_dump(mode="json")] * 2, "choice": "up"}, "choice"),
    "half a character": ('{"prompt": "p", "chosen": "\\ud83d", "rejected": "b"}', "surrogate"),
    "nested too deeply": ("[" * 200_000, "deeply"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_line_names_file_and_line_and_loads_nothing(tmp_path: Path, what: str) -> None:
    line, why = BAD[what]
    path = write(tmp_path / "bad.jsonl", LINES["pair"], line, LINES["tie"])
    with pytest.raises(BadInput, match=why) as caught:
        read_preferences(path)
    assert str(caught.value).startswith(f"{path}:2: ") and "\n" not in str(caught.value)
    assert "nothing of the file was loaded" in str(caught.value)


def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    damaged = tmp_path / "cut.jsonl.gz"
    damaged.write_bytes(gzip.compress(json.dumps(LINES["pair"]).encode() * 1000)[:50])
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"prompt": "ü"}'.encode("latin-1"))
    for path, why in (
        (tmp_path / "none.jsonl", "cannot be read"),
        (tmp_path, "cannot be read"),
        (write(tmp_path / "empty.jsonl", ""), "no preference"),
        (damaged, "damaged"),
        (latin, "latin.jsonl:1: not UTF-8"),
    ):
        with pytest.raises(BadInput, match=why):
            read_preferences(path)


# Comparisons and labels.


def texts(*responses: str) -> Comparison:
    return Comparison.of([TextCandidate(prompt="p", response=response) for response in responses])


@given(st.lists(st.text(max_size=5), min_size=2, max_size=9, unique=True), st.randoms())
@settings(max_examples=30, deadline=None)
def test_a_comparison_is_named_by_its_candidates_whatever_their_order(responses: list[str], random: object) -> None:
    turned = list(responses)
    random.shuffle(turned)  # type: ignore[attr-defined]
    assert texts(*responses).id == texts(*turned).id
    assert texts(*responses).candidates == texts(*turned).candidates


def test_what_cannot_be_compared_is_refused() -> None:
    one, other = TextCandidate(prompt="p", response="a"), TextCandidate(prompt="q", response="b")
    seen, longer = SegmentCandidate(segment=segment(1)), SegmentCandidate(segment=segment(1, 2))
    wide = SegmentCandidate(segment=segment(1, dtype=np.float64))
    for candidates, why in (
        ([one], "at least 2"),
        ([one, one], "the same"),
        ([one, other], "different prompts"),
        ([seen, wide], "same shapes"),
        ([seen, longer, SegmentCandidate(segment=segment(3))], "in pairs"),
        ([seen, SegmentCandidate(segment=segment(2), env_id="x")], "one env"),
        ([one, seen], "a text and a segment"),
    ):
        with pytest.raises(ValueError, match=why):
            Comparison.of(candidates)  # type: ignore[arg-type]
    assert Comparison.of([seen, longer]).kind == "segment"  # of any lengths
    with pytest.raises(ValueError, match="JSON compliant"):
        Comparison.of([one, TextCandidate(prompt="p", response="b")], metadata={"reward": math.nan})
    with pytest.raises(ValidationError, match="finite"):
        SegmentCandidate(segment=segment(math.inf))
    with pytest.raises(ValidationError, match="order of their digests"):
        Comparison.model_validate(texts("a", "b").model_dump() | {"id": "0" * 32})


@pytest.mark.parametrize("name", ["pair", "tie", "messages", "ranking", "segments"])
def test_a_preference_is_the_same_after_it_was_a_labelled_comparison(tmp_path: Path, name: str) -> None:
    line = dict(LINES[name])
    line["rater"] = "ada"
    if name == "tie":
        line["rejected"] = "b"
    if name == "segments":
        line["segments"] = [segment(1).model_dump(mode="json"), segment(2).model_dump(mode="json")]
    [before] = read_preferences(write(tmp_path / "a.jsonl", line))
    comparison, places = comparison_of(before)
    said = label("a", "ada", None, comparison_id=comparison.id, ranks=places, margin=line.get("margin"))
    after = preference_of(comparison, said)
    assert after is not None and json.loads(preference_line(after))["comparison"] == comparison.id
    again, same_places = comparison_of(after)
    assert (again.id, again.candidates, same_places) == (comparison.id, comparison.candidates, places)
    if isinstance(before, PreferencePair) and isinstance(after, PreferencePair):
        assert {after.chosen, after.rejected} == {before.chosen, before.rejected}
        assert before.tie or (after.chosen, after.margin, after.group) == (before.chosen, before.margin, before.group)


def test_a_skip_is_no_preference() -> None:
    comparison = texts("a", "b")
    assert preference_of(comparison, label("a", "ada", "skip", comparison_id=comparison.id)) is None


# Agreement.


def test_cohens_kappa_of_a_table_done_by_hand() -> None:
    # left/left 20, left/right 5, right/left 10, right/right 15: p_o = 35/50; p_e = .5 * .6 + .5 * .4 = .5
    said = [("l", "l")] * 20 + [("l", "r")] * 5 + [("r", "l")] * 10 + [("r", "r")] * 15
    assert cohen_kappa(said) == pytest.approx((0.7 - 0.5) / 0.5)
    assert cohen_kappa([("l", "r"), ("r", "l")]) == pytest.approx(-1.0)
    assert cohen_kappa([("l", "l"), ("l", "l")]) is None
    with pytest.raises(ValueError, match="said"):
        cohen_kappa([])


def test_krippendorffs_alpha_of_his_own_example() -> None:
    # "Computing Krippendorff's alpha-reliability" (2011), section C: four observers, twelve units, data missing; 0.743.
    rows = {
        "A": "1 2 3 3 2 1 4 1 2 . . .",
        "B": "1 2 3 3 2 2 4 1 2 5 . 3",
        "C": ". 3 3 3 2 3 4 2 2 5 1 .",
        "D": "1 2 3 3 2 4 4 1 2 5 1 .",
    }
    columns = zip(*(row.split() for row in rows.values()), strict=True)
    units = [{rater: value for rater, value in zip(rows, column, strict=True) if value != "."} for column in columns]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_krippendorffs_alpha_of_two_raters_done_by_hand() -> None:
    # Coincidences of ll, lr, rr, rr: l-l 2, l-r 1, r-l 1, r-r 4; n = 8, n_l = 3, n_r = 5; 1 - 7 * 2 / (2 * 15)
    units = [{"a": x, "b": y} for x, y in ("ll", "lr", "rr", "rr")]
    assert krippendorff_alpha(units) == pytest.approx(1 - 7 * 2 / 30)
    assert krippendorff_alpha([{"a": "l"}, {"a": "r"}]) is None  # nobody else was asked
    assert krippendorff_alpha([{"a": "l", "b": "l"}]) is None  # and nobody could disagree


def test_alpha_of_raters_who_guess_is_zero() -> None:
    # 4000 fair coins by three raters: the standard error of alpha is about 1 / sqrt(3 * 4000) < 0.01; five of them.
    rng = np.random.default_rng(0)
    units = [dict(zip("abc", rng.choice(["l", "r"], 3), strict=True)) for _ in range(4000)]
    alpha = krippendorff_alpha(units)
    assert alpha is not None and abs(alpha) < 0.05


def test_agreement_of_labels_counts_pairs_ties_skips_and_the_place_on_the_screen() -> None:
    labels = [
        label("a", "ada", "left"),
        label("a", "bob", "left", shown=(1, 0)),
        label("b", "ada", "tie"),
        label("b", "bob", "right"),
        label("c", "ada", "skip"),
        label("d", "eve", None, ranks=(0, 1, 1), shown=(2, 1, 0)),
    ]
    found = agreement(labels)
    assert (found.num_labels, found.num_raters, found.num_shared) == (5, 3, 2)
    assert found.agreement == 0.5
    # decided pairs by whether the first on the screen was chosen: a/ada yes, a/bob no, b/bob no, d: 0<1 no, 0<2 no
    assert found.first_chosen == pytest.approx(1 / 5)
    assert found.ties == pytest.approx(2 / 7)  # b/ada, and the pair 1, 2 of d, of seven decisions
    [kappa] = found.kappas
    assert (kappa.raters, kappa.num_units, kappa.agreement) == (("ada", "bob"), 2, 0.5)
    # p_o = 1/2; ada: left, tie; bob: left, right: p_e = 1/4
    assert kappa.kappa == pytest.approx((0.5 - 0.25) / 0.75)
    assert agreement([]).agreement is None


def test_raw_agreement_is_over_all_two_labels_of_a_unit() -> None:
    assert raw_agreement([{"a": 1, "b": 1, "c": 2}, {"a": 1}]) == pytest.approx(1 / 3)
    assert [kappa.raters for kappa in kappas([{"b": 1, "a": 1}, {"a": 2, "b": 1}, {"c": 1, "a": 1}])] == [
        ("a", "b"),
        ("a", "c"),
    ]


# Synthetic raters.


def shares(rewards: Sequence[float], num: int = 5_000, **config: float) -> dict[tuple[int, ...], float]:
    rng, settings = np.random.default_rng(0), SyntheticRaterConfig.model_validate(config)
    drawn = [rank(rewards, settings, rng) for _ in range(num)]
    return {places: drawn.count(places) / num for places in set(drawn)}


def test_a_rater_without_noise_says_what_is_better() -> None:
    assert shares([1.0, 2.0], num=10) == {(1, 0): 1.0}
    assert shares([3.0, 3.0], num=10) == {(0, 0): 1.0}
    assert shares([0.0, 2.0, 1.0], num=10) == {(2, 0, 1): 1.0}


def test_a_rater_with_a_temperature_chooses_as_bradley_and_terry_do() -> None:
    # 5,000 draws: the standard error is at most 0.0071; four of them.
    for difference, temperature in product((0.5, 2.0), (0.5, 1.0)):
        expected = 1 / (1 + math.exp(-difference / temperature))
        assert shares([difference, 0.0], temperature=temperature)[0, 1] == pytest.approx(expected, abs=0.0285)


def test_a_rater_that_errs_turns_that_share_of_its_answers_round() -> None:
    assert shares([1.0, 0.0], error_rate=0.1)[1, 0] == pytest.approx(0.1, abs=0.017)  # four standard errors
    with pytest.raises(ValidationError):
        SyntheticRaterConfig(error_rate=0.6)


def test_rewards_within_the_threshold_are_a_tie() -> None:
    assert shares([1.0, 1.2], num=50, tie_threshold=0.25, temperature=5.0, error_rate=0.5) == {(0, 0): 1.0}
    assert shares([1.0, 1.2, 5.0], num=50, tie_threshold=0.25) == {(1, 1, 0): 1.0}
    assert shares([1.0, 1.3], num=50, tie_threshold=0.25) == {(1, 0): 1.0}


def test_a_ranking_is_drawn_as_plackett_and_luce_do() -> None:
    weights = np.exp([1.0, 0.0, -1.0])
    first = weights[0] / weights.sum()
    assert shares([1.0, 0.0, -1.0], temperature=1.0)[0, 1, 2] == pytest.approx(
        first * weights[1] / weights[1:].sum(), abs=0.0285
    )


def test_a_true_reward_is_asked_for_a_number_or_one_a_step() -> None:
    seen = SegmentCandidate(segment=segment(1.0, 2.5))
    assert reward_of(seen, lambda observations, actions: observations[:, 0] + actions) == 4.5
    assert reward_of(TextCandidate(prompt="ab", response="c"), lambda prompt, response: len(prompt + response)) == 3
    chat = TextCandidate(messages=(Message(role="user", content="x"),), response="y")
    assert reward_of(chat, lambda messages, response: len(messages[0]["content"])) == 1
    with pytest.raises(ValueError, match="the true reward said"):
        reward_of(seen, lambda observations, actions: None)
    rater = SyntheticRater("r", lambda prompt, response: math.nan, SyntheticRaterConfig())
    with pytest.raises(ValueError, match="finite"):
        rater.answer([chat, chat])
