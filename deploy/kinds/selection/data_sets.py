"""What was kept, as data sets that recipes train on as they are: demonstrations, pairs, and labelled completions; and
what there is to say of a selection in numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from rollcall.cluster.files import write_aside
from rollcall.deploy.config.recipe.selection_config import KeepConfig
from rollcall.deploy.kinds.selection.completions import Answered
from rollcall.learners.maths.best_of_n import best_of_n_kl_bound, expected_maximum
from rollcall.reward_service.preferences.files import PreferencePair, Prompt, preference_values

SFT, PAIRS, LABELLED = "sft.jsonl", "pairs.jsonl", "labelled.jsonl"
Line = Mapping[str, JsonValue]


def write_data_sets(
    directory: Path,
    answered: Callable[[], Iterable[Answered]],
    rule: KeepConfig,
    *,
    asked: Callable[[str], Prompt],
    origin: Line,
) -> dict[str, int]:
    """Writes sft.jsonl (of a task {name: jsonl}), pairs.jsonl (of a run on preferences) and, where there is a
    threshold, labelled.jsonl (of kto), each in one move; the same completions give the same bytes. Returns the number
    of lines of each.

    Args:
      asked: a row's prompt as those are told it who judge responses.
      origin: of all lines: which policy the completions are of.
    """

    def about(item: Answered) -> dict[str, JsonValue]:
        return {"source": item.source, "of": len(item.completions), "scorer": item.scorer, **origin}

    def demonstrations(item: Answered) -> Iterator[Line]:
        for i in item.kept(rule):
            completion = item.completions[i]
            yield {"prompt": item.prompt, "answer": completion.text, "score": completion.score, **about(item)}

    def pairs(item: Answered) -> Iterator[Line]:
        if (found := item.pair(rule)) is not None:
            chosen, rejected = (item.completions[i] for i in found)
            details: Line = {"scores": [chosen.score, rejected.score], **about(item)}
            pair = PreferencePair(asked(item.prompt), chosen.text, rejected.text, rater="selection", details=details)
            yield preference_values(pair)

    def labels(item: Answered) -> Iterator[Line]:
        prompt = asked(item.prompt)
        question: Line = (
            {"prompt": prompt} if isinstance(prompt, str) else {"messages": [turn.model_dump() for turn in prompt]}
        )
        for i, passed in item.labelled(rule):
            completion = item.completions[i]
            yield {
                **question,
                **{"completion": completion.text, "label": passed, "score": completion.score},
                **about(item),
            }

    made = {SFT: demonstrations, PAIRS: pairs, **({LABELLED: labels} if rule.at_least is not None else {})}
    if rule.at_least is None:
        (directory / LABELLED).unlink(missing_ok=True)
    return {
        name: _write(directory / name, (line for item in answered() for line in lines(item)))
        for name, lines in made.items()
    }


def _write(path: Path, lines: Iterable[Line]) -> int:
    texts = [json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines]
    write_aside(path, "".join(texts).encode(errors="replace"))
    return len(texts)


@dataclass
class Tally:
    """Sums over answered prompts."""

    prompts: int = 0
    completions: int = 0
    tokens: int = 0
    score: float = 0.0  # of all completions
    kept: int = 0
    kept_score: float = 0.0
    without: int = 0  # prompts of which nothing is kept
    cut: int = 0  # completions that max_tokens cut

    def add(self, item: Answered, rule: KeepConfig) -> None:
        kept = item.kept(rule)
        self.prompts += 1
        self.completions += len(item.completions)
        self.tokens += sum(completion.num_tokens for completion in item.completions)
        self.score += sum(completion.score for completion in item.completions)
        self.kept += len(kept)
        self.kept_score += sum(item.completions[i].score for i in kept)
        self.without += not kept
        self.cut += sum(completion.finish_reason == "length" for completion in item.completions)

    def as_dict(self) -> dict[str, Any]:
        return {
            **{"prompts": self.prompts, "completions": self.completions, "generated_tokens": self.tokens},
            "mean_score": self.score / self.completions if self.completions else None,
            **{"kept": self.kept, "kept_mean_score": self.kept_score / self.kept if self.kept else None},
            **{"prompts_without": self.without, "cut": self.cut},
        }


def best_of_curve(scores: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    """By how many are chosen among (1, 2, 4, ... and all): the expected best score, a mean over prompts, and what the
    choice costs in nats of KL at the most."""
    size = min(map(len, scores), default=0)
    counts = sorted({*(2**k for k in range(size.bit_length()) if 2**k <= size), *([size] if size else [])})
    together = torch.tensor([row[:size] for row in scores], dtype=torch.float64)
    return [
        {"n": n, "expected_best": float(expected_maximum(scores=together, n=n).mean()), "kl_at_most": bound}
        for n in counts
        for bound in [best_of_n_kl_bound(n)]
    ]
