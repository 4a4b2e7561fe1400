"""What a number of metrics.jsonl is called where numbers stand in groups: TensorBoard, and the trackers beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollcall.cluster.inputs.passwords import without_passwords
from rollcall.cluster.metrics.names import name_of
from rollcall.deploy.report.recorders import Record, plain

_GROUPS = {
    **dict.fromkeys(("wait_batch_s", "update_s", "publish_s", "apply_s"), "time"),
    **dict.fromkeys(("lag_max", "lag_mean", "policy_version", "epoch", "bound_fraction"), "run"),
    **dict.fromkeys(("steps_per_s", "tokens_per_s"), "run"),
    **dict.fromkeys(
        ("return_mean", "return_min", "return_max", "episode_length_mean", "episodes", "env_steps"), "rollout"
    ),
    **dict.fromkeys(("intrinsic_reward", "prediction_error"), "rollout"),
    **dict.fromkeys(("exact_match", "unparsed_fraction", "truncated_fraction", "length_mean", "length_max"), "rollout"),
    **dict.fromkeys(("degenerate_fraction", "degenerate_dropped", "tokens"), "rollout"),
}
_PREFIXES = {"reward": "rollout", "engine": "engine"}
EVAL = "eval/"  # before what an evaluation found


def tag(key: str) -> str:
    """A task names the parts of its reward itself: they are known by the beginning of their key. So are an engine's."""
    group = _GROUPS.get(key, _PREFIXES.get(key.partition("_")[0], "time" if name_of(key).group == "time" else "update"))
    return f"{group}/{key}"


def numbers(record: Record, *, evaluated: bool = False) -> dict[str, float]:
    """A step's or an evaluation's numbers by tag; not its step, nor what is no number."""
    found: dict[str, float] = {}
    for key, value in record.items():
        number = plain(value)
        if isinstance(number, int | float) and key != "step":
            found[f"{EVAL}{key}" if evaluated else tag(key)] = float(number)
    return found


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Settings by their dotted names, as a table has them; lists as text, nothing that is not set, and of addresses no
    password: trackers send them on."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            as_it_is = isinstance(value, bool | int | float)
            found[f"{prefix}{key}"] = value if as_it_is else without_passwords(str(value))
    return found
