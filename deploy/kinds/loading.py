"""What a run that was made has learnt: its policy to act with, an evaluation of it, and its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.deploy.kinds.control.policy import LoadedControl, LoadedPolicy
from rollcall.deploy.kinds.exporting import ExportDtype, Exported, ExportOptions
from rollcall.deploy.kinds.kind import EvalOptions, LoadedRun, RunKind
from rollcall.deploy.kinds.recipes import open_run
from rollcall.deploy.kinds.tabular.policy import LoadedTable


def load(target: str | Path) -> LoadedRun:
    """The latest whole checkpoint of a run of whatever kind, or the one that is named.

    Raises:
      BadInput: when there is no such run or checkpoint.
      CheckpointDamaged: when it must not be used: a file changed, or made under another config than its run's.
    """
    run = open_run(target)
    return run.kind.load(run)


def evaluate(target: str | Path, options: EvalOptions) -> tuple[RunKind, dict[str, Any]]:
    """(the run's kind, the evaluation of its checkpoint). As `load`, and as LoadedRun.evaluate."""
    run = open_run(target)
    return run.kind, run.kind.load(run).evaluate(options)


def load_policy(path: str | Path, *, seed: int = 0) -> LoadedPolicy:
    """The policy of a run (its latest whole checkpoint) or of one checkpoint directory. `seed` is for greedy=False.

    Raises:
      BadInput, CheckpointDamaged: as `rollcall eval` would.
    """
    run = open_run(path)
    if run.kind.policy == "table":
        return LoadedPolicy(LoadedTable.of(run), seed=seed)
    if run.kind.policy != "network":
        raise BadInput(run.kind.elsewhere(run.directory))
    return LoadedPolicy(LoadedControl.of(run), seed=seed)


def export_run(target: str | Path, options: ExportOptions) -> Exported:
    """Writes the policy of a run's latest whole checkpoint, or of the named one, for other programs: a language model
    as a directory that transformers and vLLM load, a control policy as an ONNX file.

    Raises:
      BadInput: when there is no such run or checkpoint, its kind has no such export, or something is in the way.
      CheckpointDamaged: as `rollcall eval` would.
    """
    run = open_run(target)
    if run.kind.policy == "table":
        raise BadInput(run.kind.elsewhere(run.directory))
    return run.kind.load(run).export(options)


def export_policy(
    target: str | Path,
    directory: str | Path | None = None,
    *,
    onnx: str | Path | None = None,
    dtype: ExportDtype | None = None,
    adapters: bool = False,
    push: str | None = None,
    public: bool = False,
) -> Path:
    """As `rollcall export`: to `directory` (default: <run>/policy), or of a control policy to the file `onnx` (default:
    <run>/policy.onnx), in one move; an earlier export there is replaced. A `directory` that ends in .onnx is such a
    file. `dtype adapters push public`: of language models, as ExportOptions has them. Returns where it is.

    Raises:
      BadInput, CheckpointDamaged: as export_run.
    """
    options = ExportOptions.of(directory, onnx, dtype=dtype, adapters=adapters, push=push, public=public)
    return export_run(target, options).path
