"""Runs of KTO: on labelled rows, on comparisons that are taken apart, and on files that it cannot learn from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from rollcall.deploy.cli.main import main
from rollcall.deploy.preferences.labelled import rows_of, side_by_side
from rollcall.learners.data.comparisons import RankedCandidates, TokenSequence
from rollcall.reward_service.preferences.files import (
    PreferencePair,
    Ranking,
    parse_preference,
    preference_line,
    read_preferences,
)
from tests.needs import require

require("transformers")

TINY = "policy.tiny={hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}"
SHORT = (TINY, "policy.warm_start=null", "total_learner_steps=4", "batch_size=16", "kl_prompts=0")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *lines: Mapping[str, object]) -> None:
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_label_is_a_ranking_of_one_there_and_back() -> None:
    line = '{"prompt": "p", "completion": "c", "label": false, "score": 0.25}'
    row = parse_preference(line, source="x:1")
    assert isinstance(row, Ranking) and (row.responses, row.ranks) == (("c",), (1,))
    assert row.details == {"score": 0.25} and parse_preference(preference_line(row), source="") == row
    with pytest.raises(ValueError, match="label"):
        parse_preference('{"prompt": "p", "completion": "c"}', source="x:1")


def test_comparisons_are_taken_apart_and_ties_say_nothing() -> None:
    rows = rows_of(
        [
            PreferencePair("p", "good", "bad"),
            PreferencePair("p", "one", "other", tie=True),
            Ranking("q", ("a", "b", "c"), (1, 0, 2)),
            Ranking("r", ("alone",), (1,)),
        ]
    )
    found = [(row.prompt, row.responses[0], row.ranks[0]) for row in rows]
    assert found == [("p", "good", 0), ("p", "bad", 1), ("q", "a", 1), ("q", "b", 0), ("q", "c", 1), ("r", "alone", 1)]


def test_rows_are_judged_beside_one_of_the_same_prompt_where_there_is_one() -> None:
    def row(prompt: int, response: int, label: int) -> RankedCandidates[TokenSequence]:
        return RankedCandidates((TokenSequence(np.array([prompt, response], np.int32), 1),), (label,))

    pairs = side_by_side([row(1, 10, 0), row(2, 20, 0), row(2, 21, 1), row(3, 30, 1)], seed=0)
    tokens = [[c.token_ids.tolist() for c in pair.candidates] for pair in pairs]
    assert tokens[0][0] == [1, 10] and tokens[0][1] in ([2, 21], [3, 30])
    assert tokens[1] == [[2, 20], [2, 21]] and all(pair.ranks == (0, 1) for pair in pairs)
    assert side_by_side([row(1, 10, 0)], seed=0) == []


def test_labelled_rows_are_learnt_from_as_they_are_and_pairs_taken_apart() -> None:
    rows = [
        {"prompt": f"{n}?", "completion": "yes " * (1 + n % 3) if good else "no", "label": good}
        for n in range(40)
        for good in (True, False)
    ]
    write("rows.jsonl", *rows)
    assert len(read_preferences(Path("rows.jsonl"))) == 80
    assert main(["train", "synthetic-kto", "data={train: rows.jsonl}", *SHORT, "name=rows"]) == 0
    summary = json.loads(Path("runs/rows/summary.json").read_text())
    assert summary["status"] == "completed" and summary["held_out"]["n"] == 4
    assert summary["comparisons"] == {"train": 72, "held_out": 8, "left_out": 0}
    assert (Path("runs/rows/policy") / "model.safetensors").exists()
    assert main(["train", "synthetic-kto", "data={generate: {pairs: 60, eval_pairs: 20}}", *SHORT, "name=pairs"]) == 0
    summary = json.loads(Path("runs/pairs/summary.json").read_text())
    assert summary["held_out"]["n"] == 20
    assert summary["comparisons"] == {"train": 120, "held_out": 40, "left_out": 0}
    steps = [json.loads(line) for line in Path("runs/pairs/metrics.jsonl").read_text().splitlines()]
    assert steps[0]["mean_loss"] == pytest.approx(0.5, abs=1e-4) and 0 < steps[0]["desirable_share"] < 1


@pytest.mark.parametrize(
    ("recipe", "lines", "why"),
    [
        ("synthetic-kto", [{"prompt": f"{n}", "completion": "c", "label": True} for n in range(20)], "have one label"),
        ("synthetic-dpo", [{"prompt": f"{n}", "completion": "c", "label": True} for n in range(20)], "kto learns from"),
        ("synthetic-kto", [{"prompt": "p", "completion": "c", "label": "yes"}], "label: "),
        ("synthetic-kto", [{"prompt": "p", "completion": "c"}], "label: "),
    ],
)
def test_files_that_do_not_fit_get_one_line(
    recipe: str, lines: list[dict[str, object]], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("rows.jsonl", *lines)
    assert main(["train", recipe, "data={train: rows.jsonl}", *SHORT]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rollcall: error")]
    assert why in line


def test_one_row_a_batch_has_no_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "synthetic-kto", "batch_size=1"]) == 2
    assert "estimates its baseline from the rows of a batch" in capsys.readouterr().err
