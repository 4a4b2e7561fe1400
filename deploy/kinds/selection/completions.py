"""Scored completions of prompts as records, the rule by which some are kept, and the file that has each prompt once.
Must never know how they were sampled or who scored them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rollcall.deploy.config.recipe.selection_config import KeepConfig
from rollcall.deploy.kinds.selection.row_file import RowFile


@dataclass(frozen=True)
class Completion:
    """One that was sampled."""

    text: str
    score: float
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    components: Mapping[str, float] = field(default_factory=dict)  # of the score

    @property
    def is_whole(self) -> bool:
        """Whether it can be imitated: it came to its own end, and says something."""
        return self.finish_reason == "stop" and bool(self.text.strip())


@dataclass(frozen=True)
class Answered:
    """A prompt and its completions, in the order of their seeds."""

    row: int  # of the task's training rows
    source: str  # "train.jsonl:12"
    prompt: str
    completions: tuple[Completion, ...]
    scorer: str  # by version
    policy_version: int

    def kept(self, rule: KeepConfig) -> list[int]:
        """Which completions are kept, the best first; of equal scores the one that was sampled first."""
        passed = [i for i in self._distinct() if rule.at_least is None or self.completions[i].score >= rule.at_least]
        return sorted(passed, key=lambda i: -self.completions[i].score)[: rule.best]

    def pair(self, rule: KeepConfig) -> tuple[int, int] | None:
        """(the best that is kept, the worst): none where nothing is kept, or nothing is worse."""
        kept, others = self.kept(rule), self._distinct()
        if not kept:
            return None
        worst = min(others, key=lambda i: self.completions[i].score)
        return (kept[0], worst) if self.completions[worst].score < self.completions[kept[0]].score else None

    def labelled(self, rule: KeepConfig) -> list[tuple[int, bool]]:
        """Each different completion, and whether it passed the threshold. Without one there is nothing to say: the best
        of bad ones is not good."""
        if rule.at_least is None:
            return []
        return [(i, self.completions[i].score >= rule.at_least) for i in self._distinct()]

    def _distinct(self) -> list[int]:
        """Of those that are whole, the first of each text."""
        first: dict[str, int] = {}
        for i, completion in enumerate(self.completions):
            if completion.is_whole:
                first.setdefault(completion.text, i)
        return list(first.values())

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Answered:
        """Raises TypeError, KeyError: where it is no such line."""
        completions = tuple(Completion(**completion) for completion in values["completions"])
        return cls(**{**values, "completions": completions})


class AnsweredFile(RowFile[Answered]):
    """A line a prompt, each prompt once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Answered.of, remedy="its prompt is answered again")
