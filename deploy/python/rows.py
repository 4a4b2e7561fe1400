"""Rows that a program gives in place of a file's name: a list of dicts, a data set of the package datasets, a table.
They are written down once, beside the runs, under a name that follows from what they are: a run that is resumed, and
its processes, read them there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import write_aside
from rollcall.cluster.inputs.tables import row_lines
from rollcall.deploy.config.settings import CALLER, KeyPath, flat_values
from rollcall.deploy.rundir.jobs import runs_root

FOLDER = ".data"  # in the directory of the runs; no run can be called so
_FILES: tuple[KeyPath, ...] = (("task", "path"), ("task", "eval_path"), ("data", "train"), ("data", "eval"))


def with_rows_kept(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings by dotted keys, with a file's name where rows stood.

    Raises:
      BadInput: in one line, where a setting takes rows and these are none that a file could hold.
    """
    kept: dict[str, Any] = {}
    for path, value in flat_values(values):
        key = ".".join(path)
        if path not in _FILES and path[:2] in _FILES and _rows_of(value, key) is not None:
            splits = ".".join(path[:2])
            raise BadInput(
                f"{splits} ({CALLER}): a data set of several splits: give one of them, {splits}=dataset[{path[2]!r}]"
            )
        rows = _rows_of(value, key) if path in _FILES else None
        kept[key] = value if rows is None else str(_written(rows, key))
    return kept


def _rows_of(value: Any, key: str) -> Iterable[Any] | None:
    """None: it is a file's name, or nothing that holds rows."""
    if isinstance(value, list | tuple):
        return value
    if hasattr(value, "to_pylist"):  # pyarrow's tables
        return value.to_pylist()  # type: ignore[no-any-return]
    if hasattr(value, "to_dicts"):  # those of polars
        return value.to_dicts()  # type: ignore[no-any-return]
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # pandas'
        return value.to_dict("records")  # type: ignore[no-any-return]
    if hasattr(value, "column_names") and hasattr(value, "__len__"):  # those of the package datasets
        return value  # type: ignore[no-any-return]
    if hasattr(value, "__iter__") and not isinstance(value, str | bytes | Path | Mapping):
        kind = type(value).__name__
        raise BadInput(f"{key} ({CALLER}): a {kind} is read once, and rows again and again: give a list, or a Dataset")
    return None


def _written(rows: Iterable[Any], key: str) -> Path:
    lines = [line for _, line in row_lines(f"{key} ({CALLER})", rows)]
    if not lines:
        raise BadInput(f"{key} ({CALLER}): has no rows: give at least one")
    text = "\n".join(lines) + "\n"
    path = runs_root() / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, text)
    return path
