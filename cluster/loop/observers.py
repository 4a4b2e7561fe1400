"""Who watches a run, and what they are told: learner steps, evaluations, and events worth a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rollcall.cluster.messages.events import EvalDone, TicketFailed


class RunObserver(Protocol):
    """A file, a terminal, a metrics endpoint."""

    def on_step(self, record: dict[str, Any]) -> None: ...
    def on_eval(self, record: dict[str, Any]) -> None: ...
    def on_event(self, kind: str, text: str) -> None: ...


class Observers:
    """All of a run, told one after the other."""

    def __init__(self, observers: Sequence[RunObserver]) -> None:
        self._observers = observers
        self._told_unfinished = False

    def on_step(self, record: dict[str, Any]) -> None:
        for observer in self._observers:
            observer.on_step(record)

    def on_event(self, kind: str, text: str) -> None:
        for observer in self._observers:
            observer.on_event(kind, text)

    def on_failures(self, events: Sequence[TicketFailed]) -> list[TicketFailed]:
        """One line for all tickets that one cause took. Returns the first of each cause."""
        causes: dict[tuple[str, str], list[TicketFailed]] = {}
        for event in events:
            causes.setdefault((event.reason, event.detail), []).append(event)
        for (reason, detail), lost in causes.items():
            first = f"ticket {lost[0].header.ticket_id} attempt {lost[0].header.attempt}"
            others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            self.on_event(reason, f"{first}{others}: {detail}")
        return [lost[0] for lost in causes.values()]

    def on_evaluated(self, event: EvalDone, *, tokens: int) -> None:
        """`tokens`: sampled so far."""
        report = event.report
        if report is None:
            self.on_event("eval_failed", event.error)
            return
        record = {
            "step": event.step,
            "env_steps": event.env_steps,
            "tokens": tokens,
            "policy_version": event.step,
            "mean": report.mean,
            "std": report.std,
            "n": report.n,
            "unit": report.unit,
        }
        if report.unfinished is not None:
            record["unfinished"] = report.unfinished
        if report.unfinished and not self._told_unfinished:
            self._told_unfinished = True
            self.on_event(
                "eval_unfinished",
                f"{report.unfinished} of {report.n} episodes had not ended after {max(report.lengths)} steps, and "
                "their returns are of so many: give episodes an end (env.max_episode_steps), or say when evaluation is "
                "to leave them (eval.max_steps_per_episode)",
            )
        for observer in self._observers:
            observer.on_eval(record)
