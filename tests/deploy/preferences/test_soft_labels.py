"""A judge's soft labels from the question to the reward model: labelled over HTTP, written, read, learnt from; and what
they are worth: probabilities that can be believed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rollcall.cluster.messages.reports import StepOrder
from rollcall.deploy.cli.main import main
from rollcall.deploy.preferences.accuracy import calibration
from rollcall.learners.algorithms.preferences.bradley_terry import BradleyTerry
from rollcall.learners.algorithms.preferences.bradley_terry_config import BradleyTerryConfig
from rollcall.learners.collators.preferences import PreferenceCollator
from rollcall.learners.data.comparisons import RankedCandidates, Steps
from rollcall.learners.data.source import ShuffledSource
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.language.byte_tokenizer import byte_tokenizer
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.reward_service.preferences.files import (
    PreferencePair,
    parse_preference,
    preference_line,
    read_preferences,
)
from tests.needs import needs
from tests.reward_service.scorers.judge_server import JudgeServer, Reply, shown

FEATURES = 6


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Linear(nn.Module):
    """Rewards [1, R] of R steps: linear in what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return (observations @ self.weights)[None]


def calibration_error(seed: int, *, soft: bool) -> float:
    """Of a reward model that learns from a judge's labels of 1,500 pairs, on 4,000 pairs whose answers are drawn as
    Bradley and Terry say. The judge knows the truth, and likes what is shown first by half a logit; both orders are
    asked."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=FEATURES)
    truth *= 1.5 / np.linalg.norm(truth)

    def pairs(count: int) -> tuple[Any, Any]:
        seen = generator.normal(size=(count, 2, FEATURES)).astype(np.float32)
        return seen, (seen[:, 0] - seen[:, 1]) @ truth

    def judged(difference: float) -> float:
        return (sigmoid(difference + 0.5) + 1 - sigmoid(-difference + 0.5)) / 2

    seen, differences = pairs(1500)
    comparisons = []
    for two, difference in zip(seen, differences, strict=True):
        p = judged(difference)
        better = two if p >= 0.5 else two[::-1]
        candidates = tuple(Steps(one[None], np.zeros((1, 1), np.float32)) for one in better)
        comparisons.append(RankedCandidates(candidates, (0, 1), probability=max(p, 1 - p) if soft else 1.0))
    module = Linear()
    learner = Learner(
        models={"reward": module},
        algorithm=BradleyTerry(BradleyTerryConfig()),
        config=LearnerConfig(learning_rate=0.05, device="cpu"),
        policy_id="reward",
        run_seed=seed,
        collator=PreferenceCollator(),
    )
    source = ShuffledSource(comparisons, batch_size=100, steps=150, seed=seed)
    for step in range(150):
        batch = source.take(step)
        assert batch is not None
        learner.update(batch, StepOrder(step=step, epoch=0, progress=step / 150))
    seen, differences = pairs(4000)
    answers = generator.random(4000) < 1 / (1 + np.exp(-differences))
    believed = (seen[:, 0] - seen[:, 1]) @ module.weights.detach().numpy()
    chosen = np.where(answers, believed, -believed)
    return calibration([sigmoid(float(value)) for value in chosen])[1]


@pytest.mark.parametrize("seed", range(5))
def test_a_model_of_soft_labels_is_better_calibrated_than_one_of_the_same_labels_hardened(seed: int) -> None:
    """Hard labels of a judge that is always right say that every pair is sure: their model is far too sure. 4,000
    answers show an error of 0.01 to 0.02 of a perfect model; half of the other's is far beyond that."""
    soft, hard = calibration_error(seed, soft=True), calibration_error(seed, soft=False)
    assert soft < 0.5 * hard, (soft, hard)
    assert soft < 0.06 < hard


def test_a_judges_probabilities_are_in_the_file_and_learnt_from(
    server: JudgeServer, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a command to a command, over HTTP; the judge likes longer texts, and what is shown first."""

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        p = sigmoid(0.3 * (len(shown(body, "response A")) - len(shown(body, "response B"))) + 1.0)
        top = [{"token": "A", "logprob": math.log(p)}, {"token": "B", "logprob": math.log(1 - p)}]
        best = "A" if p > 0.5 else "B"
        return {
            "message": {"content": best},
            "logprobs": {"content": [{"token": best, "logprob": 0.0, "top_logprobs": top}]},
        }

    server.reply = reply
    lines = [{"prompt": f"{n}?", "chosen": "yes " * (1 + n % 3), "rejected": "no " * (1 + n % 2)} for n in range(24)]
    Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("judge.yaml").write_text(f"url: {server.url}\nmodel: m\nmode: pairwise\nsoft: true\n")
    assert main(["reward", "label", "import", "pairs.jsonl", "labels", "--unlabelled"]) == 0
    assert main(["reward", "label", "judge", "labels", "--judge", "judge.yaml"]) == 0
    said = capsys.readouterr().out
    assert "24 labels by judge" in said and "position bias: +0." in said and "taken out" in said
    assert main(["reward", "label", "export", "labels", "out.jsonl"]) == 0
    found = read_preferences(Path("out.jsonl"))
    assert len(found) == 24
    for pair in found:
        assert isinstance(pair, PreferencePair) and pair.probability is not None
        difference = 0.3 * (len(pair.chosen) - len(pair.rejected))
        expected = (sigmoid(difference + 1) + 1 - sigmoid(-difference + 1)) / 2
        assert pair.probability == pytest.approx(expected, abs=1e-9) and pair.probability >= 0.5
        assert parse_preference(preference_line(pair), source="") == pair
    assert main(["reward", "label", "import", "out.jsonl", "again"]) == 0
    assert main(["reward", "label", "export", "again", "again.jsonl"]) == 0
    assert read_preferences(Path("again.jsonl")) == found
    tiny = "{hidden_size: 16, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 32}"
    assert main(["reward", "train", "out.jsonl", f"model.tiny={tiny}", "total_learner_steps=2", "name=soft"]) == 0
    losses = [json.loads(line) for line in Path("runs/soft/metrics.jsonl").read_text().splitlines()]
    hard = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    Path("hard.jsonl").write_text("".join(json.dumps({**line, "probability": 1.0}) + "\n" for line in hard))
    assert main(["reward", "train", "hard.jsonl", f"model.tiny={tiny}", "total_learner_steps=2", "name=hard"]) == 0
    other = [json.loads(line) for line in Path("runs/hard/metrics.jsonl").read_text().splitlines()]
    assert losses[0]["accuracy"] == other[0]["accuracy"], "the same comparisons in the same order"
    assert losses[0]["grad_norm"] < other[0]["grad_norm"], "what is less sure pulls less"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.4}', "probability: .*0.5"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "probability": 1.1}', "probability: .*less than"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.9, "tie": true}', "give one of them"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0.9, "margin": 1}', "give one of them"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "probabilty": 0.9}', "did you mean 'probability'"),
    ],
)
def test_a_soft_label_that_is_none_is_refused(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_preference(line, source="x:1")


def slowly(body: dict[str, Any]) -> str:
    time.sleep(6)
    return "A"


@pytest.mark.parametrize("reply", ["garbage", "errors", "hangs"])
def test_a_judge_that_lies_fails_or_hangs_ends_the_labelling_in_one_line_and_in_time(
    server: JudgeServer, here: Path, capsys: pytest.CaptureFixture[str], reply: str
) -> None:
    answers: dict[str, Reply] = {
        "garbage": lambda body: "Both have their charms.",
        "errors": lambda body: (500, {}, "<html>oops</html>"),
    }
    answers["hangs"] = slowly
    server.reply = answers[reply]
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    Path("judge.yaml").write_text(
        f"{{url: '{server.url}', model: m, mode: pairwise, tries: 2, timeout_s: 1, deadline_s: 2}}"
    )
    assert main(["reward", "label", "import", "pairs.jsonl", "labels", "--unlabelled"]) == 0
    capsys.readouterr()
    began = time.monotonic()
    assert main(["reward", "label", "judge", "labels", "--judge", "judge.yaml"]) == 1
    assert time.monotonic() - began < 20
    (line,) = capsys.readouterr().err.splitlines()
    assert {"garbage": "no verdict", "errors": "said 500", "hangs": "did not answer in time"}[reply] in line


@pytest.mark.long
@needs("vllm")
@pytest.mark.timeout(600)
def test_a_models_directory_is_a_judge_served_by_an_engine_that_ends_with_the_command(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny model has no opinion that could be read as a letter: what is shown is that it is asked and answers, by the
    one line that says what it said."""
    tokenizer = byte_tokenizer(["Reply with one letter and nothing else: A or B."] * 5, vocab_size=300)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "intermediate_size": 64,
    }
    write_tiny_model(here / "frozen", tokenizer=tokenizer, seed=1, max_position_embeddings=2048, **shape)
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    Path("judge.yaml").write_text("{model: frozen, mode: pairwise, soft: true, max_model_len: 1024}")
    assert main(["reward", "label", "import", "pairs.jsonl", "labels", "--unlabelled"]) == 0
    code = main(["reward", "label", "judge", "labels", "--judge", "judge.yaml"])
    captured = capsys.readouterr()
    assert (code == 0 and "1 labels by judge" in captured.out) or "no verdict in the judge's reply" in captured.err
    assert Path("logs/judge_frozen.log").exists()
    assert main(["reward", "label", "judge", "labels", "--judge", "nowhere.yaml"]) == 2
    Path("judge.yaml").write_text("{model: nowhere, mode: pairwise}")
    assert main(["reward", "label", "judge", "labels", "--judge", "judge.yaml"]) == 2
    assert "nowhere: no model is in it" in capsys.readouterr().err
