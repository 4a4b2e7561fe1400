"""Texts with labels as comparisons, and a reward model that learns from them what naive Bayes over words does."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.preferences.data import load_preferences
from rollcall.deploy.preferences.data_config import PreferenceDataConfig
from rollcall.deploy.preferences.text_labels import divided, is_labelled, pairs_of, places_of, read_labelled
from rollcall.reward_service.preferences.files import PreferencePair
from tests.needs import needs


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(path: Path, *labels: Any) -> Path:
    return write(path, [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)])


@pytest.mark.parametrize(
    ("labels", "best"),
    [
        (("pos", "neg"), "pos"),
        (("Negative", "Positive"), "Positive"),
        ((True, False), 1.0),
        ((0, 1), 1.0),
        ((1, 5, 3.5), 5.0),
        (("0", "1"), "1"),
        (("harmful", "harmless"), "harmless"),
    ],
)
def test_which_label_is_better_is_known_of_numbers_and_usual_words(tmp_path: Path, labels: Any, best: Any) -> None:
    places = places_of(read_labelled(labelled(tmp_path / "a.jsonl", *labels)), None)
    assert max(places, key=lambda label: places[label]) == best
    assert len(set(places.values())) == len(labels)


@pytest.mark.parametrize(
    ("labels", "given", "said"),
    [
        (
            ("spam", "ham"),
            None,
            r"labels ham, spam: which is better is not known: give data.labels=\[WORST, ..., BEST\]",
        ),
        (("spam", "ham", "eggs"), ("spam", "ham"), "also has eggs: name all labels, the worst first"),
        (("pos", "pos"), None, "all texts have the label pos: a comparison needs two"),
        ((1, "pos"), None, "which is better is not known"),
    ],
)
def test_labels_that_say_nothing_are_refused_in_one_line(tmp_path: Path, labels: Any, given: Any, said: str) -> None:
    rows = read_labelled(labelled(tmp_path / "a.jsonl", *labels))
    with pytest.raises(BadInput, match=said) as refused:
        places_of(rows, given)
    assert "\n" not in str(refused.value)


def test_the_order_that_is_given_is_taken(tmp_path: Path) -> None:
    rows = read_labelled(labelled(tmp_path / "a.jsonl", "ham", "spam", "eggs"))
    assert places_of(rows, ("spam", "eggs", "ham")) == {"spam": 0, "eggs": 1, "ham": 2}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": " ", "label": 1}, "text is empty"),
        ({"text": 3, "label": 1}, "text is not text"),
        ({"text": "a", "label": None}, "label is neither a word, nor a number, nor true or false"),
        ({"text": "a", "label": [1]}, "label is neither"),
        ({"text": "a"}, "a text and a label are needed"),
        ({"text": "a", "label": 1, "prompt": 7}, "prompt is not text"),
    ],
)
def test_a_bad_line_is_named_and_nothing_of_its_file_is_loaded(tmp_path: Path, line: Any, said: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "good", "label": 1}, line])
    with pytest.raises(BadInput, match=rf"a.jsonl:2: .*{said}.*nothing of the file was loaded"):
        read_labelled(path)


def test_each_text_is_compared_with_so_many_of_other_labels_and_no_comparison_is_there_twice(tmp_path: Path) -> None:
    rows = read_labelled(labelled(tmp_path / "a.jsonl", *([1] * 40 + [0] * 60)))
    pairs = pairs_of(rows, {0.0: 0, 1.0: 1}, per_text=4, seed=0)
    label = {row.text: row.label for row in rows}
    assert all((label[pair.chosen], label[pair.rejected]) == (1.0, 0.0) for pair in pairs)
    assert len({(pair.chosen, pair.rejected) for pair in pairs}) == len(pairs)
    of = Counter(text for pair in pairs for text in (pair.chosen, pair.rejected))
    assert len(of) == 100 and min(of.values()) >= 4
    assert (
        pairs
        == pairs_of(rows, {0.0: 0, 1.0: 1}, per_text=4, seed=0)
        != pairs_of(rows, {0.0: 0, 1.0: 1}, per_text=4, seed=1)
    )


def test_of_texts_with_prompts_those_of_one_prompt_are_compared(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 5}", "completion": f"c{i}", "label": i % 2 == 0} for i in range(20)]
    found = read_labelled(write(tmp_path / "a.jsonl", rows))
    pairs = pairs_of(found, places_of(found, None), per_text=4, seed=0)
    prompt = {row["completion"]: row["prompt"] for row in rows}
    assert pairs and all(prompt[p.chosen] == prompt[p.rejected] == p.prompt for p in pairs)


def test_a_text_is_on_one_side_alone_whatever_its_labels(tmp_path: Path) -> None:
    lines = [
        {"text": f"text {i % 30}", "label": int(i < 35)} for i in range(60)
    ]  # some stand there twice, or with both
    train, held = divided(read_labelled(write(tmp_path / "a.jsonl", lines)), fraction=0.2, seed=3)
    assert train and held and len(train) + len(held) == 60
    assert {row.text for row in train} & {row.text for row in held} == set()
    assert {row.label for row in held} == {0.0, 1.0}
    file = tmp_path / "a.jsonl"
    found = load_preferences(PreferenceDataConfig(train=str(file)), tmp_path, seed=0, pair_labels=True)
    sides = [
        {t for p in side if isinstance(p, PreferencePair) for t in (p.chosen, p.rejected)}
        for side in (found.train, found.held_out)
    ]
    assert sides[0] & sides[1] == set() and found.is_text


def test_scores_of_which_no_two_texts_have_the_same_are_held_out_by_a_tenth_and_compared(tmp_path: Path) -> None:
    rows = read_labelled(labelled(tmp_path / "a.jsonl", *(number / 7 for number in range(2000))))
    learnt, held = divided(rows, fraction=0.1, seed=0)
    assert (len(learnt), len(held)) == (1800, 200)
    pairs = pairs_of(learnt, places_of(rows, None), per_text=4, seed=0)
    number = {row.text: row.label for row in rows}
    assert len(pairs) > 4 * 1800 * 0.95
    assert all(number[pair.chosen] > number[pair.rejected] for pair in pairs)  # type: ignore[operator]


def test_comparisons_and_labels_for_kto_are_read_as_before(tmp_path: Path) -> None:
    pairs = write(tmp_path / "p.jsonl", [{"prompt": f"{i}", "chosen": "a", "rejected": "b"} for i in range(20)])
    assert not is_labelled(pairs)
    kto = write(tmp_path / "k.jsonl", [{"prompt": f"{i}", "completion": "a", "label": i % 2 == 0} for i in range(20)])
    assert len(load_preferences(PreferenceDataConfig(train=str(kto)), tmp_path, seed=0).train) == 18


# What a reviewer's words tell: half of the words of a review say nothing, most of the others a little.
_WORD = re.compile(r"\w+")


def reviews(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of 8 to 25 words, with the frequencies of a language (Zipf's), of which many lean a little to one label."""
    draw = np.random.default_rng(seed)
    leaning = np.random.default_rng(7).normal(0, 0.7, 6000)
    base = 1 / (np.arange(6000) + 20.0)
    shares = [np.exp(sign * leaning) * base for sign in (-0.5, 0.5)]
    shares = [share / share.sum() for share in shares]
    rows = []
    for _ in range(count):
        label = int(draw.integers(2))
        words = draw.choice(6000, size=int(draw.integers(8, 26)), p=shares[label])
        rows.append({"text": " ".join(f"w{word}" for word in words), "label": "pos" if label else "neg"})
    return rows


def naive_bayes(train: Sequence[dict[str, Any]], held: Sequence[dict[str, Any]]) -> float:
    """The share of held-out pairs across labels that it orders rightly: presence of words, counts from 1."""
    counts = {
        label: Counter(w for row in train if row["label"] == label for w in set(_WORD.findall(row["text"])))
        for label in ("neg", "pos")
    }
    words = counts["neg"].keys() | counts["pos"].keys()
    totals = {label: sum(count.values()) + len(words) for label, count in counts.items()}
    weight = {
        word: math.log((counts["pos"][word] + 1) / totals["pos"]) - math.log((counts["neg"][word] + 1) / totals["neg"])
        for word in words
    }
    return right_pairs(held, [sum(weight.get(word, 0.0) for word in set(_WORD.findall(row["text"]))) for row in held])


def right_pairs(rows: Sequence[dict[str, Any]], scores: Sequence[float]) -> float:
    """Of all pairs across labels."""
    good, bad = (
        np.array([s for s, row in zip(scores, rows, strict=True) if row["label"] == label]) for label in ("pos", "neg")
    )
    return float((np.sign(good[:, None] - bad[None]) / 2 + 0.5).mean())


@needs("transformers")
def test_reward_train_of_a_file_of_labels_is_level_with_naive_bayes_and_is_served(tmp_path: Path) -> None:
    """3,000 made-up reviews, judged on 1,000 others; seeds 1 and 2."""
    from rollcall.reward_service.models.reward_model_config import RewardModelConfig
    from rollcall.reward_service.protocol import ScoreItem
    from rollcall.reward_service.scorer import Score
    from rollcall.reward_service.scorers.reward_model_scorer import build_reward_model_scorer

    train, held = reviews(3000, 1), reviews(1000, 2)
    write(tmp_path / "reviews.jsonl", train)
    with chdir(tmp_path):
        assert main.main(["reward", "train", "reviews.jsonl", "name=run"]) == 0
        summary = json.loads(Path("runs/run/summary.json").read_text())
        scorer = build_reward_model_scorer(RewardModelConfig(path="runs/run/model"))
    scores = scorer.score([ScoreItem(id=str(i), prompt="", response=row["text"]) for i, row in enumerate(held)])
    assert all(isinstance(score, Score) for score in scores)
    bayes = naive_bayes(train, held)
    assert 0.75 < bayes < 0.95, "neither hopeless nor trivial"
    assert right_pairs(held, [score.value for score in scores if isinstance(score, Score)]) > bayes - 0.005
    assert summary["kept"]["which"] == "best"
    assert summary["held_out"]["accuracy"] == pytest.approx(bayes, abs=0.05)


@needs("transformers")
def test_labels_that_cannot_be_ordered_end_the_command_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(tmp_path / "mail.jsonl", *["spam", "ham"] * 20)
    with chdir(tmp_path):
        assert main.main(["reward", "train", "mail.jsonl"]) == 2
    assert capsys.readouterr().err.strip().splitlines() == [
        "rollcall: error: mail.jsonl: labels ham, spam: which is better is not known: "
        "give data.labels=[WORST, ..., BEST]"
    ]
