"""What an evaluation of a direct method's policy says, of all held-out comparisons and of each group's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollcall.deploy.preferences.accuracy import accuracy_of
from rollcall.deploy.preferences.implicit_rewards import PolicyJudgement
from rollcall.deploy.report.counted import PAIRS_RIGHT


def evaluation_record(judged: PolicyJudgement, groups: Sequence[str]) -> dict[str, Any]:
    """An evaluation's record; of groups, each one's own and the worst."""
    if not len(judged.differences):
        return {"mean": None, "std": None, "n": 0, "unit": PAIRS_RIGHT, "eval_loss": judged.loss}
    found = accuracy_of(judged.differences.tolist())
    std = (found.accuracy * (1 - found.accuracy)) ** 0.5
    record: dict[str, Any] = {"mean": found.accuracy, "std": std, "n": found.n, "low": found.low, "high": found.high}
    record |= {"unit": PAIRS_RIGHT, "eval_loss": judged.loss, "margin": judged.margin}
    own: dict[str, Any] = {}
    for number, name in enumerate(groups):
        theirs = judged.differences[judged.groups == number]
        if len(theirs):
            loss = float(judged.losses[judged.groups == number].mean())
            own[name] = {**accuracy_of(theirs.tolist()).as_dict(), "loss": loss}
    if own:
        record |= {"groups": own, "worst_group_accuracy": min(value["accuracy"] for value in own.values())}
        record |= {"worst_group_loss": max(value["loss"] for value in own.values())}
    return record
