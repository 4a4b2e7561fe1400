"""The book of the rounds in which a run's raters are asked while its policy learns: a line for each reward model. Must
never import torch: reports read it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rollcall.cluster.books.log_file import alone, cut_torn_line
from rollcall.cluster.files import append_whole, read_json

REWARD_MODELS = "reward_models"  # of the run directory: where a private service finds models to load
ROUNDS = "rounds.jsonl"


@dataclass(frozen=True)
class Round:
    """A reward model that was made while the policy learnt."""

    labels: int  # of all rounds so far, which it has learnt from
    new_labels: int
    policy_version: int  # the newest whose doing was to be compared
    model_version: str  # of the model in service then
    swapped_in: bool  # False: the one before it was better, and stayed
    fresh: Mapping[str, Any] | None  # of the new labels, how many the model before was right about: it had seen none
    held_out: Mapping[str, Any] | None  # of held-out labels, how many the new model is right about
    agreement: Mapping[str, Any] | None  # of raters who were asked the same


def rounds_before(directory: Path, labels: int, mark: str = "") -> Iterator[tuple[int, Path]]:
    """(labels, model) of complete rounds on fewer labels, but those whose model was not taken."""
    refused = {line["labels"] for line in read_rounds(directory) if not line["swapped_in"]}
    for path in directory.glob(f"labels-*{mark}/model"):
        number = path.parent.name.removeprefix("labels-").removesuffix(mark)
        if number.isdigit() and int(number) < labels and int(number) not in refused and is_complete(path.parent):
            yield int(number), path


def held_out_of(model: Path) -> Mapping[str, Any] | None:
    """As the summary of the model's own run has it."""
    found: Mapping[str, Any] | None = read_json(model.parent / "summary.json").get("held_out")
    return found


def is_complete(directory: Path) -> bool:
    return bool(read_json(directory / "summary.json").get("status") == "completed")


def book_round(directory: Path, found: Round) -> None:
    """Once: a round that is made again, after a resume, is the one that is there."""
    if any(line["labels"] == found.labels for line in read_rounds(directory)):
        return
    with alone(directory / ROUNDS) as file:
        cut_torn_line(directory / ROUNDS)
        append_whole(file.fileno(), (json.dumps(asdict(found)) + "\n").encode())


def read_rounds(directory: Path) -> list[dict[str, Any]]:
    """By their labels; a line that was cut short is left out."""
    path = directory / ROUNDS
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return sorted(found, key=lambda round_: int(round_["labels"]))
