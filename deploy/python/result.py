"""A run that was made, as a program holds it: its directory, its summary, its records, its policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rollcall.deploy.kinds.control.policy import LoadedPolicy
from rollcall.deploy.kinds.kind import EvalOptions
from rollcall.deploy.kinds.loading import evaluate, export_policy, load_policy
from rollcall.deploy.report.progress import duration, number
from rollcall.deploy.report.run_lines import read_jsonl


@dataclass(frozen=True)
class Result:
    """What `train` and `resume` return."""

    run_directory: Path
    summary: Mapping[str, Any]  # what summary.json holds

    @property
    def status(self) -> str:
        """completed, or stopped: with a checkpoint, from which `rollcall.resume` goes on."""
        return str(self.summary["status"])

    @property
    def score(self) -> float | None:
        """The mean of the final evaluation: a return, or a share of problems solved. None: it was not evaluated."""
        final = self.summary.get("final_eval")
        mean = final.get("mean") if isinstance(final, Mapping) else None
        return None if mean is None else float(mean)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl: a record for each learner step. pandas.DataFrame takes it as it is."""
        return read_jsonl(self.run_directory / "metrics.jsonl")

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """evals.jsonl: a record for each evaluation."""
        return read_jsonl(self.run_directory / "evals.jsonl")

    @property
    def report(self) -> Path:
        """The page of curves."""
        return self.run_directory / "report.html"

    def policy(self, *, seed: int = 0) -> LoadedPolicy:
        """As `rollcall.load_policy`, of the newest checkpoint.

        Raises:
          BadInput: of a run whose policy is a language model: `export` writes that for transformers and vLLM.
        """
        return load_policy(self.run_directory, seed=seed)

    def evaluate(self, *, episodes: int | None = None, seed: int | None = None) -> dict[str, Any]:
        """As `rollcall.evaluate`, of the newest checkpoint."""
        return evaluate(self.run_directory, EvalOptions(episodes=episodes, seed=seed))[1]

    def export(self, directory: str | Path | None = None) -> Path:
        """As `rollcall.export`."""
        return export_policy(self.run_directory, directory)

    def __repr__(self) -> str:
        score = f", score {number(self.score)}" if self.score is not None else ""
        return f"<rollcall.Result {self.run_directory}: {self.status}{score}>"

    def _repr_html_(self) -> str:
        """For a notebook."""
        rows = {
            "run": str(self.run_directory),
            "status": self.status,
            "score": number(self.score),
            "learner steps": number(self.summary.get("learner_steps")),
            "time": duration(float(self.summary.get("wall_s") or 0.0)),
        }
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
        return f"<table>{cells}</table>"
