"""The settings of a run over time: spans of learner steps, each with one set of settings. `segments.json`, beside the
run's config.yaml, books where each began and what changed; config.yaml has the settings of the last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from rollcall.cluster.errors import CheckpointDamaged
from rollcall.cluster.files import write_aside

SEGMENTS = "segments.json"


class SettingsSpan(BaseModel):
    """From learner step `step` to where the next begins."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int  # learner steps done when it began
    config_hash: str
    changes: dict[str, tuple[JsonValue, JsonValue]] = {}  # setting -> (before, from now on)
    began_unix_s: float = 0.0
    command: str = ""

    def __str__(self) -> str:
        changed = ", ".join(
            f"{name} {json.dumps(old)} -> {json.dumps(new)}" for name, (old, new) in self.changes.items()
        )
        return f"from step {self.step}: {changed}" if changed else f"from step {self.step}"


_FILE: TypeAdapter[tuple[SettingsSpan, ...]] = TypeAdapter(tuple[SettingsSpan, ...])


@dataclass(frozen=True, slots=True)
class SettingsHistory:
    """All of a run, oldest first; at least one."""

    all: tuple[SettingsSpan, ...]

    @classmethod
    def single(cls, config_hash: str, *, began_unix_s: float = 0.0, command: str = "") -> SettingsHistory:
        """Of a run whose settings were never changed."""
        return cls((SettingsSpan(step=0, config_hash=config_hash, began_unix_s=began_unix_s, command=command),))

    @property
    def config_hash(self) -> str:
        """Of the settings now."""
        return self.all[-1].config_hash

    def made(self, config_hash: str) -> bool:
        """Whether a checkpoint of this hash is the run's."""
        return any(span.config_hash == config_hash for span in self.all)

    def followed_by(self, span: SettingsSpan) -> SettingsHistory:
        return replace(self, all=(*self.all, span))

    def beginning_at(self, step: int) -> SettingsHistory:
        """Those that were to begin after `step` begin there: a restore went back, and nothing learnt in them stands."""
        return replace(self, all=tuple(s.model_copy(update={"step": min(s.step, step)}) for s in self.all))


def read_settings_history(run_directory: Path, *, config_hash: str) -> SettingsHistory:
    """The settings of a run whose config.yaml has the hash `config_hash`.

    Raises:
      CheckpointDamaged: when the file cannot be read, or config.yaml is of none of them.
    """
    path = run_directory / SEGMENTS
    if not path.exists():
        origin = _origin(run_directory)
        began, command = float(origin.get("began_unix_s") or 0.0), str(origin.get("command") or "")
        return SettingsHistory.single(config_hash, began_unix_s=began, command=command)
    found = booked_spans(run_directory)
    if found and found[-1].config_hash == config_hash:
        return SettingsHistory(found)
    if len(found) > 1 and found[-2].config_hash == config_hash:
        # Killed between booking the new one and writing its config.yaml: it never began.
        return SettingsHistory(found[:-1])
    raise CheckpointDamaged(
        f"{run_directory / 'config.yaml'}: its settings ({config_hash[:12]}) are not those that {SEGMENTS} has booked "
        f"({found[-1].config_hash[:12] if found else 'none'}): put back the file that the run wrote; settings are "
        "changed with rollcall resume RUN key=value"
    )


def booked_spans(run_directory: Path) -> tuple[SettingsSpan, ...]:
    """As segments.json has them; of a run that was never changed the one that run.json knows, or none.

    Raises:
      CheckpointDamaged: when the file cannot be read.
    """
    path = run_directory / SEGMENTS
    if not path.exists():
        known = _origin(run_directory).get("config_hash")
        return SettingsHistory.single(str(known)).all if known else ()
    try:
        return _FILE.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise CheckpointDamaged(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _origin(run_directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((run_directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_settings_history(run_directory: Path, history: SettingsHistory) -> None:
    write_aside(run_directory / SEGMENTS, _FILE.dump_json(history.all, indent=1) + b"\n")


def changes_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between two trees of plain values, by dotted path. Lists are compared whole."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= {f"{key}.{inner}": pair for inner, pair in changes_between(old, new).items()}
        elif old != new or (key in before) != (key in after):
            found[key] = (old, new)
    return found
