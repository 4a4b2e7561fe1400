"""From files of preferences to what a learner takes: nothing of a bad file, no prompt on both sides, no token twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.actors.tasks.reviews import kindness
from rollcall.cluster.errors import BadInput
from rollcall.deploy.preferences.data import encode_texts, load_preferences
from rollcall.deploy.preferences.data_config import PreferenceDataConfig
from rollcall.deploy.preferences.synthetic import MAJORITY, MINORITY, SyntheticConfig, preferred_sign, write_synthetic
from rollcall.reward_service.preferences.files import PreferencePair, Ranking, SegmentPair, read_preferences
from rollcall.reward_service.protocol import ArrayField, Segment


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def pairs(count: int, *, per_prompt: int = 1) -> list[dict[str, Any]]:
    return [{"prompt": f"p{i // per_prompt}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(count)]


class Letters:
    """A token is a character's code; a response ends with 0."""

    def prompt(self, prompt: Any) -> list[int]:
        return [ord(c) for c in prompt]

    def response(self, text: str) -> list[int]:
        return [*(ord(c) for c in text), 0]


def test_a_prompt_is_either_learnt_from_or_held_out(tmp_path: Path) -> None:
    config = PreferenceDataConfig(train=str(write(tmp_path / "p.jsonl", pairs(100, per_prompt=5))), eval_fraction=0.25)
    found = load_preferences(config, tmp_path, seed=1)
    prompts = [{p.prompt for p in part if isinstance(p, PreferencePair)} for part in (found.train, found.held_out)]
    assert not prompts[0] & prompts[1]
    assert (len(found.train), len(found.held_out)) == (75, 25)
    assert load_preferences(config, tmp_path, seed=1) == found
    assert load_preferences(config, tmp_path, seed=2).held_out != found.held_out


def test_a_bad_line_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [*pairs(3), {"prompt": "p", "chosen": "only this"}])
    with pytest.raises(BadInput, match=r"p\.jsonl:4: .*rejected"):
        load_preferences(PreferenceDataConfig(train=str(path)), tmp_path, seed=0)


def test_comparisons_of_one_prompt_are_not_divided_and_the_remedy_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(80)]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PreferenceDataConfig(train=str(tmp_path / "one.jsonl"))
    with pytest.raises(BadInput, match=r"all 80 comparisons are of one prompt.*give data\.eval=FILE\.jsonl"):
        load_preferences(config, tmp_path, seed=0)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_comparison(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": str(i), "chosen": "a", "rejected": "b"}) for i in range(3)]
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [
        item.prompt for item in read_preferences(tmp_path / "windows.jsonl") if not isinstance(item, SegmentPair)
    ] == [*"012"]


def test_texts_and_segments_do_not_mix_and_too_few_are_told(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", pairs(1))
    with pytest.raises(BadInput, match="too few comparisons"):
        load_preferences(PreferenceDataConfig(train=str(one)), tmp_path, seed=0)
    array = {"dtype": "float32", "shape": [1], "content": "AAAAAA=="}
    segment = {"observations": array, "actions": array}
    mixed = write(tmp_path / "mixed.jsonl", [*pairs(4), {"segments": [segment, segment], "choice": "left"}])
    with pytest.raises(BadInput, match=r"mixed\.jsonl:5: texts and segments are mixed"):
        load_preferences(PreferenceDataConfig(train=str(mixed)), tmp_path, seed=0)


def segment_line(left: int, right: int, *, scale: float = 0.5, **more: Any) -> dict[str, Any]:
    """Of two segments that are named by what is seen in them."""

    def segment(name: int) -> dict[str, Any]:
        actions = np.full((2, 1), scale, np.float32)
        seen = np.full((2, 1), name, np.float32)
        return Segment(observations=ArrayField.of(seen), actions=ArrayField.of(actions)).model_dump(mode="json")

    return {"segments": [segment(left), segment(right)], "choice": "left", **more}


def names_of(preferences: Any) -> list[tuple[int, ...]]:
    return [tuple(int(s.observations.array()[0, 0]) for s in pair.segments) for pair in preferences]


@pytest.mark.parametrize(
    ("drawn", "held", "unused"),
    [
        (2000, 70, 0),  # most pairs stand alone, or in small groups
        (300, (20, 70), (1, 70)),  # nearly all hang together
        (60, (1, 70), (1, 70)),  # every segment was compared two dozen times
    ],
)
def test_no_segment_is_both_learnt_from_and_held_out(tmp_path: Path, drawn: int, held: Any, unused: Any) -> None:
    """700 pairs of `drawn` segments. A tenth is asked for, and at most as many again are given up for it."""
    generator = np.random.default_rng(0)
    chosen = [generator.choice(drawn, 2, replace=False).tolist() for _ in range(700)]
    path = write(tmp_path / "p.jsonl", [segment_line(left, right) for left, right in chosen])
    config = PreferenceDataConfig(train=str(path))
    found = load_preferences(config, tmp_path, seed=1)
    learnt, out = ({name for pair in names_of(part) for name in pair} for part in (found.train, found.held_out))
    assert not learnt & out
    for count, wanted in ((len(found.held_out), held), (found.unused, unused)):
        low, high = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        assert low <= count <= high
    assert len(found.train) + len(found.held_out) + found.unused == 700
    assert load_preferences(config, tmp_path, seed=1) == found


def test_the_same_pair_twice_is_on_one_side_and_a_star_of_pairs_leaves_nothing_to_learn_from(tmp_path: Path) -> None:
    twice = write(tmp_path / "p.jsonl", [segment_line(2 * (i // 2), 2 * (i // 2) + 1) for i in range(40)])
    found = load_preferences(PreferenceDataConfig(train=str(twice)), tmp_path, seed=0)
    assert (len(found.train), len(found.held_out), found.unused) == (36, 4, 0)
    star = write(tmp_path / "star.jsonl", [segment_line(0, i + 1) for i in range(20)])
    with pytest.raises(BadInput, match=r"star\.jsonl: every comparison shares a segment.*data\.eval"):
        load_preferences(PreferenceDataConfig(train=str(star)), tmp_path, seed=0)


def test_a_given_file_of_held_out_comparisons_that_shares_with_the_other_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind, lines in (("texts", pairs(9)), ("segments", [segment_line(i, i + 50) for i in range(9)])):
        train, out = (write(tmp_path / f"{kind}{n}.jsonl", part) for n, part in enumerate((lines[:6], lines[5:])))
        load_preferences(PreferenceDataConfig(train=str(train), eval=str(out)), tmp_path, seed=0)
        assert f"{kind}1.jsonl: 1 of 4 held-out comparisons share" in caplog.text


def test_actions_as_sampled_and_as_taken_do_not_mix(tmp_path: Path) -> None:
    taken: dict[str, Any] = {"metadata": {"question": "?", "actions": "taken"}}
    new = [segment_line(i, i + 50, **taken) for i in range(9)]
    old = [segment_line(i + 100, i + 150, scale=3.0) for i in range(9)]
    load_preferences(PreferenceDataConfig(train=str(write(tmp_path / "new.jsonl", new))), tmp_path, seed=0)
    load_preferences(PreferenceDataConfig(train=str(write(tmp_path / "old.jsonl", old))), tmp_path, seed=0)
    mixed = write(tmp_path / "mixed.jsonl", [*new, *old])
    with pytest.raises(BadInput, match=r"mixed\.jsonl:1\d: does not say that its actions are those that the env took"):
        load_preferences(PreferenceDataConfig(train=str(mixed)), tmp_path, seed=0)


def test_prompt_and_response_tokens_stand_side_by_side_and_what_is_too_long_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "ab", "chosen": "c", "rejected": "dd", "margin": 1.5, "group": "y"},
        {"prompt": "ab", "chosen": "c", "rejected": "d" * 10, "group": "x"},
        {"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 0, 1], "group": "x"},
        {"prompt": "a", "chosen": "b", "rejected": "c", "tie": True, "group": "x"},
    ]
    items = read_preferences(write(tmp_path / "p.jsonl", lines))
    found = encode_texts(items, Letters(), max_tokens=8, groups=("x", "y"))
    assert [c.token_ids.tolist() for c in found[0].candidates] == [[97, 98, 99, 0], [97, 98, 100, 100, 0]]
    assert [c.num_prompt for c in found[0].candidates] == [2, 2]
    assert (found[0].margin, found[0].group, found[0].ranks) == (1.5, 1, (0, 1))
    assert [item.ranks for item in found] == [(0, 1), (1, 0, 1), (0, 0)]
    assert "1 of 4 comparisons have more than 8 tokens" in caplog.text


@pytest.mark.parametrize(
    ("line", "settings", "told"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"max_tokens": 2}, "none of 1 comparisons fits"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"groups": ("x",)}, r"p\.jsonl:1: group None"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, {"for_policy": True}, r"p\.jsonl:1: an empty prompt"),
    ],
)
def test_comparisons_that_cannot_be_learnt_from_are_named(
    tmp_path: Path, line: dict[str, Any], settings: dict[str, Any], told: str
) -> None:
    items = read_preferences(write(tmp_path / "p.jsonl", [line]))
    with pytest.raises(BadInput, match=told):
        encode_texts(items, Letters(), **{"max_tokens": 8, **settings})


# What is made up.


def test_kindness_is_the_sum_of_the_words_and_not_turns_the_next_one_round() -> None:
    assert kindness("start superb, end dull.") == 1
    assert kindness("start not superb, mood not nasty.") == 0
    assert kindness("price usual.") == 0


@pytest.mark.parametrize("share", [None, 0.2])
def test_made_up_comparisons_are_judged_by_kindness_and_the_minority_the_other_way(
    tmp_path: Path, share: float | None
) -> None:
    config = SyntheticConfig(pairs=400, eval_pairs=100, minority_share=share)
    train, held_out = (read_preferences(path) for path in write_synthetic(tmp_path, config, seed=3))
    for item in [*train, *held_out]:
        assert isinstance(item, PreferencePair) and isinstance(item.prompt, str)
        assert preferred_sign(item.group) * kindness(item.chosen) > preferred_sign(item.group) * kindness(item.rejected)
        assert (item.group or "") in item.prompt
    if share is not None:
        assert [item.group for item in train].count(MINORITY) == 80
        assert [item.group for item in held_out].count(MAJORITY) == 50
    before = (tmp_path / "train.jsonl").read_bytes()
    write_synthetic(tmp_path, config, seed=3)
    assert (tmp_path / "train.jsonl").read_bytes() == before


def test_noise_is_the_share_of_wrong_labels_and_only_among_those_to_learn_from(tmp_path: Path) -> None:
    """1000 labels with 20% wrong: between 16% and 24% (three standard deviations are 3.8%)."""
    config = SyntheticConfig(pairs=1000, eval_pairs=200, noise=0.2)
    train, held_out = (read_preferences(path) for path in write_synthetic(tmp_path, config, seed=0))
    wrong = [kindness(p.chosen) < kindness(p.rejected) for p in train if isinstance(p, PreferencePair)]
    assert 0.16 < sum(wrong) / len(wrong) < 0.24
    assert all(kindness(p.chosen) > kindness(p.rejected) for p in held_out if isinstance(p, PreferencePair))


def test_more_than_two_responses_are_ranked(tmp_path: Path) -> None:
    train, _ = write_synthetic(tmp_path, SyntheticConfig(pairs=20, eval_pairs=5, responses=4), seed=0)
    for item in read_preferences(train):
        assert isinstance(item, Ranking) and not isinstance(item, SegmentPair)
        rewards = [kindness(response) for response in item.responses]
        assert [rewards[i] for i in sorted(range(4), key=lambda i: item.ranks[i])] == sorted(rewards, reverse=True)
