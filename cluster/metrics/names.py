"""What a number of metrics.jsonl is called, wherever people meet it: the report, comparisons, TensorBoard's groups, the
dashboards and docs/metrics.md. One name for one thing, and the field's where it has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Group = Literal["learning", "behaviour", "engine", "time", "books"]
GROUPS: tuple[Group, ...] = ("learning", "behaviour", "engine", "time", "books")  # in the order worth reading
MEASURES = ("nats", "tok", "s", "steps/s", "tok/s")  # units that stand beside a title
_NATS, _TOKENS, _SECONDS, _STEPS = "nats", "tok", "s", "steps"


@dataclass(frozen=True, slots=True)
class Name:
    """`unit` is empty where a number has none; of a fraction it is "0 to 1"."""

    title: str
    unit: str = ""
    group: Group = "learning"


def _of(group: Group, names: Mapping[str, tuple[str, str]]) -> dict[str, Name]:
    return {key: Name(title, unit, group) for key, (title, unit) in names.items()}


# In the order worth reading within a group.
NAMES: Mapping[str, Name] = {
    **_of(
        "learning",
        {
            "return_mean": ("Return", ""),
            "exact_match": ("Exact match", "0 to 1"),
            "reward_mean": ("Reward", ""),
            "reward_task": ("Task reward, not learnt from", ""),
            "accuracy": ("Accuracy on pairs", "0 to 1"),
            "implicit_accuracy": ("Implicit accuracy on pairs", "0 to 1"),
            "policy_loss": ("Policy loss", ""),
            "value_loss": ("Value loss", ""),
            "ptx_loss": ("PPO-ptx loss", _NATS),
            "loss": ("Loss", ""),
            "negative_log_likelihood": ("Negative log-likelihood", _NATS),
            "mean_loss": ("Mean loss", ""),
            "critic_loss": ("Critic loss", ""),
            "approx_kl": ("Approximate KL", _NATS),
            "kl_old": ("KL of the update", _NATS),
            "kl_coef": ("KL coefficient", ""),
            "kl_reference": ("KL to the reference", _NATS),
            "clip_fraction": ("Clip fraction", "0 to 1"),
            "explained_variance": ("Explained variance", "up to 1"),
            "grad_norm": ("Gradient norm", ""),
            "learning_rate": ("Learning rate", ""),
            "q_mean": ("Q value", ""),
            "td_error": ("TD error, absolute", ""),
            "temperature": ("Entropy temperature", ""),
            "gradient_steps": ("Gradient steps", _STEPS),
            "line_search_steps": ("Line search steps", _STEPS),
            "margin": ("Reward margin", ""),
            "implicit_margin": ("Implicit reward margin", ""),
            "log_ratio_mean": ("Log-ratio", _NATS),
            "better_log_ratio": ("Log-ratio of chosen responses", _NATS),
            "worse_log_ratio": ("Log-ratio of rejected responses", _NATS),
            "predictor_loss": ("RND predictor loss", ""),
            "intrinsic_value_loss": ("Intrinsic value loss", ""),
        },
    ),
    **_of(
        "behaviour",
        {
            "entropy": ("Entropy", _NATS),
            "episode_length_mean": ("Episode length", _STEPS),
            "length_mean": ("Completion length", _TOKENS),
            "length_max": ("Completion length, longest", _TOKENS),
            "truncated_fraction": ("Truncated completions", "0 to 1"),
            "unparsed_fraction": ("Unparsed completions", "0 to 1"),
            "degenerate_fraction": ("Degenerate groups", "0 to 1"),
            "reward_agreement": ("Pairs ordered alike by reward and task", "0 to 1"),
            "reward_fresh_accuracy": ("Accuracy on fresh labels", "0 to 1"),
            "reward_disagreement": ("Reward ensemble disagreement", ""),
            "repeated_ngrams": ("Repeated 4-grams", "0 to 1"),
            "identical_fraction": ("Identical completions", "0 to 1"),
            "intrinsic_reward": ("Intrinsic reward", ""),
            "prediction_error": ("RND prediction error", ""),
        },
    ),
    **_of(
        "engine",
        {
            "mismatch": ("Log-probability mismatch", _NATS),
            "fresh_mismatch": ("Log-probability mismatch, same weights", _NATS),
            "fresh_fraction": ("Tokens without lag", "0 to 1"),
            "outside_nucleus": ("Tokens outside the nucleus", "0 to 1"),
            "engine_canary": ("Engine canary", _NATS),
            "engine_canary_bound": ("Engine canary, bound", _NATS),
            "engine_running": ("Running requests", "requests"),
            "engine_waiting": ("Waiting requests", "requests"),
            "engine_kv_cache_usage": ("KV cache usage", "0 to 1"),
            "engine_steps": ("Engine steps", _STEPS),
            "engine_cached_tokens": ("Prefix cache hits", _TOKENS),
            "engine_computed_tokens": ("Prefix cache misses", _TOKENS),
            "padding_fraction": ("Padding", "0 to 1"),
            "trained_tokens": ("Trained tokens", _TOKENS),
        },
    ),
    **_of(
        "time",
        {
            "steps_per_s": ("Env steps per second", "steps/s"),
            "tokens_per_s": ("Tokens per second", "tok/s"),
            "bound_fraction": ("Fraction of the bound", "0 to 1"),
            "step_s": ("Step time", _SECONDS),
            "wait_batch_s": ("Wait time", _SECONDS),
            "update_s": ("Update time", _SECONDS),
            "gradient_s": ("Gradient time", _SECONDS),
            "act_s": ("Acting time", _SECONDS),
            "score_s": ("Scoring time", _SECONDS),
            "publish_s": ("Publishing time", _SECONDS),
            "apply_s": ("Weight loading time", _SECONDS),
        },
    ),
    **_of(
        "books",
        {
            "lag_max": ("Policy lag, largest", "versions"),
            "lag_mean": ("Policy lag, mean", "versions"),
            "policy_version": ("Policy version", "versions"),
            "env_steps": ("Env steps", _STEPS),
            "tokens": ("Tokens", _TOKENS),
            "episodes": ("Episodes", "episodes"),
            "env_restarts": ("Env restarts", "envs"),
            "degenerate_dropped": ("Degenerate groups dropped", "prompts"),
            "replay_transitions": ("Replay buffer size", "transitions"),
            "replay_bytes": ("Replay buffer memory", "bytes"),
            "replay_age_versions": ("Replay age in versions", "versions"),
            "replay_age_env_steps": ("Replay age in env steps", _STEPS),
            "priority_evenness": ("Priority evenness", "0 to 1"),
        },
    ),
}
_BY_PREFIX: tuple[tuple[str, Group], ...] = (("engine_", "engine"), ("replay_", "books"))


def name_of(key: str) -> Name:
    """Also of one that only an algorithm or a task knows: it is called by its key."""
    known = NAMES.get(key)
    if known is not None:
        return known
    title = key.replace("_", " ").capitalize()
    if key.endswith("_s"):
        return Name(title, _SECONDS, "time")
    for prefix, group in _BY_PREFIX:
        if key.startswith(prefix):
            return Name(title, group=group)
    return Name(title)
