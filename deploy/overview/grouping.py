"""Which runs are seeds of one another: those whose settings are the same but for the seed, what the run is called and
who watches it. And in what the groups differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollcall.deploy.config.settings import NO_PART_OF_THE_RESULT, dotted_values
from rollcall.deploy.overview.run_reading import RunReading

_ABSENT = "not there"
_LONGEST_LABEL = 60
_IN_A_LABEL = 3  # settings that a group is called by


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    label: str
    runs: tuple[RunReading, ...]
    settings: Mapping[str, Any]  # by dotted key


def grouped(runs: Sequence[RunReading]) -> tuple[list[Group], dict[str, list[Any]]]:
    """(the groups in the order of their first runs, what differs between them: setting -> its value in each group)."""
    found: dict[str, list[RunReading]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        own = comparable_settings(run.config)
        key = json.dumps(own, sort_keys=True, default=str)
        found.setdefault(key, []).append(run)
        settings[key] = own
    differing = differences([settings[key] for key in found])
    labels = _labels([found[key] for key in found], differing)
    groups = [Group(label, tuple(found[key]), settings[key]) for label, key in zip(labels, found, strict=True)]
    return groups, differing


def comparable_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a result, but the seed, by dotted key."""
    left_out = {"seed", *NO_PART_OF_THE_RESULT}
    return dotted_values({key: value for key, value in config.items() if key not in left_out})


def differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings that are not the same in all: key -> the value of each, "not there" where it has none."""
    keys = list(dict.fromkeys(key for own in settings for key in own))
    values = {key: [own.get(key, _ABSENT) for own in settings] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def setting_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str)


def _labels(groups: Sequence[Sequence[RunReading]], differing: Mapping[str, Sequence[Any]]) -> list[str]:
    """By the settings that differ where these are few, else by recipe, else by what the runs' names have in common;
    where two would be called alike, numbered."""
    candidates: list[list[str]] = []
    if 0 < len(differing) <= _IN_A_LABEL:
        candidates.append(
            [
                ", ".join(f"{key}={setting_text(values[index])}" for key, values in differing.items())
                for index in range(len(groups))
            ]
        )
    candidates.append([runs[0].recipe for runs in groups])
    candidates.append([_common_name(runs) for runs in groups])
    for labels in candidates:
        if len(set(labels)) == len(labels) and max(map(len, labels)) <= _LONGEST_LABEL:
            return labels
    return [f"{label} ({index})" for index, label in enumerate(candidates[-1], start=1)]


def _common_name(runs: Sequence[RunReading]) -> str:
    names = [run.name for run in runs]
    columns = zip(*names, strict=False)
    length = next((at for at, letters in enumerate(columns) if len(set(letters)) > 1), min(map(len, names)))
    return names[0][:length].rstrip("-_.") or names[0]
