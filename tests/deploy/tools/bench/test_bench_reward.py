"""`rollcall bench reward`: the items that are asked for, what is measured beside the service, and what ratios mean."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.tools.bench import reward as bench_reward
from rollcall.deploy.tools.bench import reward_model as bench_reward_model
from rollcall.deploy.tools.bench.reward import Load, _ratios
from rollcall.deploy.tools.bench.reward_load import LONGEST, SHORTEST, Asked, length_of, texts_of
from rollcall.deploy.tools.bench.reward_model import Forward, write_classifier
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scheduling.batch_queue import BatchingConfig
from rollcall.reward_service.scorer import Score
from rollcall.reward_service.scorers.building import build_scorer
from tests.runs import BENCH_KEYS


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of a hundredth of the size."""
    for name, value in {"_HIDDEN": 64, "_LAYERS": 1, "_HEADS": 2}.items():
        monkeypatch.setattr(bench_reward_model, name, value)


def test_the_model_has_about_ten_million_parameters(tmp_path: Path) -> None:
    assert 9e6 < write_classifier(tmp_path / "model") < 11e6


def test_lengths_are_log_uniform_and_a_number_always_makes_the_same_item() -> None:
    lengths = [length_of(number) for number in range(4000)]
    assert min(lengths) >= SHORTEST and max(lengths) <= LONGEST
    logs = [math.log(length / SHORTEST) / math.log(LONGEST / SHORTEST) for length in lengths]
    deciles = statistics.quantiles(logs, n=10)
    # 4000 draws of fixed seeds: a decile of a uniform distribution is off by 0.008 (one standard deviation) at most.
    assert deciles == pytest.approx([0.1 * i for i in range(1, 10)], abs=0.03)
    assert texts_of(17) == texts_of(17) != texts_of(18)
    assert all(len("".join(texts_of(number))) + 1 == length_of(number) for number in range(50))


def test_a_direct_forward_pass_and_the_production_scorer_agree_and_scores_tell_items_apart(
    small: None, tmp_path: Path
) -> None:
    model, numbers = tmp_path / "model", range(6)
    write_classifier(model)
    forward = Forward(model, 1, BatchingConfig(), 8)
    direct = forward("scores", list(numbers))
    scorer = build_scorer(RewardModelConfig(path=str(model), device="cpu"))
    items = [ScoreItem(id=str(n), prompt=texts_of(n)[0], response=texts_of(n)[1]) for n in numbers]
    assert [scorer.cost(item) for item in items] == pytest.approx([length_of(n) for n in numbers], abs=2)
    served = [outcome.value for outcome in scorer.score(items) if isinstance(outcome, Score)]
    assert served == pytest.approx(direct, abs=bench_reward.TOLERANCE / 10)
    gaps = [abs(a - b) for i, a in enumerate(direct) for b in direct[:i]]
    assert min(gaps) > 10 * bench_reward.TOLERANCE, "a mixed-up score would be seen"
    per_s, per_cpu_s = forward("throughput", 0.2)
    assert 0 < per_s < math.inf and 0 < per_cpu_s < math.inf


def test_the_ratio_is_of_medians_and_what_had_no_score_does_not_count() -> None:
    load = Load(tokens_per_s=[800.0, 700.0, 100.0], clients_cpu_s=1.0, service_cpu_s=8.0, seconds=10.0)
    load.asked = [Asked(1, 200, 0.5, 0.1), Asked(2, 0, None, 9.0)]
    found = _ratios([(1000.0, 900.0), (900.0, 800.0), (5000.0, 850.0)], load, 2)
    assert (found["bound"], found["achieved"], found["ratio_to_bound"]) == (1000, 700, 0.7)
    assert found["ratio_by_cpu_s"] == round(length_of(1) / 8.0 / 850.0, 3)
    assert found["cpu_cores"] == {"service": 0.8, "clients": 0.1}


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--clients", "0"], ["--seconds", "0"], ["--threads", "0"], ["--repeats", "0"]):
        assert main.main(["bench", "reward", *wrong]) == 2
        assert "must be" in capsys.readouterr().err
    with pytest.raises(BadInput):
        bench_reward.main(main.build_parser().parse_args(["bench", "reward", "--clients", "-1"]))


@pytest.mark.prove
def test_the_whole_of_it_in_small(
    small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the real processes; what it says about speed is not asserted in so short a time."""
    short = {"RAW_S": 0.5, "WARM_UP_S": 0.5, "OVERLOAD_S": 2.0, "CACHE_ITEMS": 4, "NUM_PROCESSES": 1}
    for name, value in (short | {"BATCHING": {"max_batch_tokens": 1024}}).items():
        monkeypatch.setattr(bench_reward, name, value)
    arguments = ["--seconds", "2", "--clients", "6", "--repeats", "1", "--threads", "1", "--json"]
    assert main.main(["bench", "reward", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() >= BENCH_KEYS and result["unit"] == "tokens/s"
    assert result["scores"]["wrong"] == 0 == result["scores"]["unanswered"] and result["scores"]["checked"] >= 6
    assert result["cache"]["miss_ms"] > 0 and result["ratio_to_bound"] > 0
    assert "full batches" in bench_reward._table(result)
