"""What a look at something of the user's own has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """Problems end a run or spoil it; notes are worth knowing; facts are what it is."""

    what: str
    name: str
    facts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        found = [f"{self.what} {self.name}", *(f"  {fact}" for fact in self.facts)]
        found += [f"  note: {note}" for note in self.notes]
        found += [f"  PROBLEM: {problem}" for problem in self.problems]
        return [*found, "to be fixed" if self.problems else "a run can use it"]

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "name": self.name, "ok": not self.problems} | {
            "facts": self.facts,
            "notes": self.notes,
            "problems": self.problems,
        }


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
