"""The metrics of a run: base units, few labels, and nothing claimed that no record said."""

from __future__ import annotations

import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rollcall.cluster.metrics import MetricsConfig, RunMetrics

LABELS = {"policy": "policy", "env": "gsm8k"}
SHARED: dict[str, Any] = {
    "step": 0,
    "epoch": 1,
    "policy_version": 1,
    "wait_batch_s": 0.5,
    "update_s": 2.0,
    "publish_s": 0.25,
    "lag_max": 2,
    "lag_mean": 0.75,
    "bound_fraction": 0.7,
    "skipped": False,
    "restarts": 1,
}
CONTROL = SHARED | {"return_mean": 20.0, "env_steps": 2048, "episodes": 9, "env_restarts": 0}
LANGUAGE = SHARED | {
    "reward_mean": 0.4,
    "exact_match": 0.25,
    "truncated_fraction": 0.125,
    "length_mean": 87.5,
    "tokens": 4096,
    "degenerate_dropped": 3,
    "apply_s": 0.2,
    "entropy": 0.6,
    "kl_reference": 0.01,
    "clip_fraction": 0.05,
    "mismatch": 0.002,
    "trained_tokens": 4096.0,
    "samples": [{"prompt": "2+2=", "text": "4", "reward": 1.0}],
}


def language() -> RunMetrics:
    return RunMetrics(**LABELS, kind="language")


def value(metrics: RunMetrics, name: str, **more: str) -> float | None:
    return metrics.registry.get_sample_value(f"rollcall_{name}", LABELS | more)


def test_a_language_step_sets_each_metric_from_its_key() -> None:
    metrics = language()
    metrics.on_step(LANGUAGE)
    found = {
        "reward_mean": 0.4,
        "exact_match_ratio": 0.25,
        "truncated_ratio": 0.125,
        "completion_length_tokens": 87.5,
        "entropy_nats": 0.6,
        "kl_reference_nats": 0.01,
        "clip_fraction_ratio": 0.05,
        "logprob_mismatch_nats": 0.002,
        "policy_version": 1,
        "policy_lag_max": 2,
        "policy_lag_mean": 0.75,
        "bound_fraction_ratio": 0.7,
        "restarts": 1,
        "update_seconds_sum": 2.0,
        "wait_batch_seconds_sum": 0.5,
        "publish_seconds_sum": 0.25,
        "weights_apply_seconds_sum": 0.2,
    }
    assert {name: value(metrics, name) for name in found} == found


def test_a_control_step_sets_each_metric_from_its_key() -> None:
    metrics = RunMetrics(**LABELS)
    metrics.on_step(CONTROL)
    metrics.on_eval({"step": 1, "mean": 88.0})
    found = {
        "return_mean": 20.0,
        "env_steps_total": 2048,
        "episodes_total": 9,
        "env_restarts_total": 0,
        "policy_lag_max": 2,
        "update_seconds_count": 1,
        "eval_return_mean": 88.0,
    }
    assert {name: value(metrics, name) for name in found} == found
    assert value(metrics, "learner_steps_total", outcome="done") == 1


def test_neither_kind_of_run_has_the_metrics_of_the_other() -> None:
    names = {
        kind: {family.name for family in RunMetrics(policy="p", env="e", kind=kind).registry.collect()}
        for kind in ("control", "language")
    }
    assert {"rollcall_return_mean", "rollcall_env_steps", "rollcall_eval_return_mean"} <= names["control"]
    assert {"rollcall_tokens", "rollcall_reward_mean", "rollcall_eval_exact_match_ratio"} <= names["language"]
    assert not [name for name in names["control"] if "token" in name or "reward" in name]
    assert not [name for name in names["language"] if "env_" in name or "return" in name]


def test_generated_tokens_are_totals_and_trained_tokens_are_of_each_step() -> None:
    metrics = language()
    for step in (0, 1, 1):  # a learner was lost after step 1, which comes again: trained again, but counted once
        metrics.on_step(LANGUAGE | {"step": step, "tokens": 4096 * (step + 1)})
    assert value(metrics, "tokens_total", stage="generated") == 8192
    assert value(metrics, "tokens_total", stage="trained") == 3 * 4096


def test_prompts_dropped_are_counted_by_outcome() -> None:
    metrics = language()
    metrics.on_step(LANGUAGE)
    metrics.on_step(LANGUAGE | {"degenerate_dropped": 5})
    metrics.on_event("actor_died", "lm-0: SIGKILL")
    assert value(metrics, "prompts_dropped_total", outcome="degenerate") == 5
    assert value(metrics, "events_total", outcome="actor_died") == 1


@pytest.mark.parametrize("key", sorted(LANGUAGE.keys() - {"step"}))
@pytest.mark.parametrize("absent", [None, float("nan"), "missing"])
def test_a_key_without_a_number_fails_nothing_and_leaves_the_last_value(key: str, absent: Any) -> None:
    metrics = language()
    metrics.on_step(LANGUAGE)
    before = samples_of(metrics)
    record = {name: v for name, v in LANGUAGE.items() if name != key}
    metrics.on_step(record if absent == "missing" else record | {key: absent})
    after = samples_of(metrics)
    assert after.keys() == before.keys()
    gauges = [name for name in before if name.endswith(("_ratio", "_nats", "_mean", "_max", "_tokens"))]
    assert {name: after[name] for name in gauges} == {name: before[name] for name in gauges}
    assert all(number == number for number in after.values()), "a NaN got into a sum"


def samples_of(metrics: RunMetrics) -> dict[str, float]:
    skipped = ("rollcall_learner_steps", "rollcall_last_step")  # the clock, and a label that differs with `skipped`
    return {
        f"{sample.name}{sorted(sample.labels.items())}"
        if len(sample.labels) > len(LABELS)
        else sample.name: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if not sample.name.startswith(skipped)
    }


def test_what_was_never_measured_has_no_sample_rather_than_a_zero() -> None:
    metrics = language()
    metrics.on_step({key: v for key, v in LANGUAGE.items() if key != "kl_reference"})
    assert value(metrics, "kl_reference_nats") is None
    assert value(metrics, "eval_exact_match_ratio") is None


def test_prometheus_reads_the_page_and_every_label_is_one_of_a_few() -> None:
    metrics = language()
    port = metrics.serve(MetricsConfig(port=None))
    try:
        metrics.on_step(LANGUAGE)
        metrics.on_eval({"step": 1, "tokens": 4096, "mean": 0.972, "std": 0.16, "n": 500, "unit": "exact match"})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            text = reply.read().decode()
    finally:
        metrics.close()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["rollcall_eval_exact_match_ratio"].samples[0].value == 0.972
    labels = {label for family in families.values() for sample in family.samples for label in sample.labels}
    assert labels == {"policy", "env", "outcome", "stage", "le"}
    assert "2+2=" not in text
