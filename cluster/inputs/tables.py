"""Data that people have as tables: Parquet files, folders of them, data sets of the package datasets on disk or on the
Hugging Face hub. Each row becomes the JSON line that it would be in a file of those, so whoever reads lines reads these
too. pyarrow and datasets are imported where there is something to read with them."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rollcall.cluster.errors import BadInput

HUB = "hub:"  # before a name: hub:OWNER/NAME[:SUBSET[:SPLIT]]
_EXTRA = "pip install 'rollcall-rl[datasets]'"
_DEFAULT_SPLIT = "train"


def is_table(path: Path) -> bool:
    """Whether it is read here: a name on the hub, a folder, or a Parquet file."""
    if str(path).startswith(HUB) or path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def table_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(source, JSON line) of each row; the source is "file:row", for messages.

    Raises:
      BadInput: in one line, where it cannot be read, or a package for it is missing.
    """
    if str(path).startswith(HUB):
        yield from row_lines(str(path), _hub_rows(str(path).removeprefix(HUB)))
    elif path.is_dir():
        yield from _folder_lines(path)
    else:
        yield from row_lines(str(path), _parquet_rows(path))


def _folder_lines(folder: Path) -> Iterator[tuple[str, str]]:
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        try:
            names = json.loads(splits.read_text()).get("splits", [])
        except (ValueError, AttributeError) as error:
            raise BadInput(f"{splits}: damaged: {error}; save the data set again") from None
        raise BadInput(f"{folder}: a data set of several splits: name one: {folder / str((names or ['train'])[0])}")
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        yield from row_lines(str(folder), _saved_rows(folder))
        return
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise BadInput(
            f"{folder}: cannot be read: it is a directory, with neither Parquet files nor a saved data set: name a file"
        )
    for file in files:
        yield from row_lines(str(file), _parquet_rows(file))


def _parquet_rows(path: Path) -> Iterator[Mapping[str, object]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadInput(f"{path}: a Parquet file, which the package pyarrow reads: {_EXTRA}") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        first = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: a Parquet file that cannot be read: {first}") from None


def _saved_rows(folder: Path) -> Iterator[Mapping[str, object]]:
    try:
        import datasets
    except ImportError:
        raise BadInput(f"{folder}: a data set as the package datasets saves it: {_EXTRA}") from None
    try:
        yield from datasets.load_from_disk(str(folder))
    except (OSError, ValueError, FileNotFoundError) as error:
        raise BadInput(
            f"{folder}: a saved data set that cannot be read: {' '.join(str(error).split())[:200]}"
        ) from None


def _hub_rows(name: str) -> Iterator[Mapping[str, object]]:
    try:
        import datasets
    except ImportError:
        raise BadInput(f"{HUB}{name}: data sets by name are read by the package datasets: {_EXTRA}") from None
    repository, subset, split = [*name.split(":"), "", ""][:3]
    if repository.count("/") > 1 or not repository or name.count(":") > 2:
        raise BadInput(f"{HUB}{name}: no name of a data set: write {HUB}OWNER/NAME:SUBSET:SPLIT")
    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(repository, subset or None, split=split or _DEFAULT_SPLIT)
    except Exception as error:  # of datasets, of the hub's client, and of whatever that uses for HTTP
        first = " ".join(str(error).split())[:200]
        raise BadInput(f"{HUB}{name}: cannot be loaded ({type(error).__name__}: {first})") from None


def row_lines(source: str, rows: Iterable[object]) -> Iterator[tuple[str, str]]:
    """(source:row, JSON line) of each row.

    Raises:
      BadInput: in one line, for a row that is no mapping of what JSON can hold.
    """
    for number, row in enumerate(rows, start=1):
        at = f"{source}:{number}"
        if not isinstance(row, Mapping):
            raise BadInput(f"{at}: is a {type(row).__name__}: a row is a dict, column -> value")
        try:
            yield at, json.dumps({str(key): _plain(value) for key, value in row.items()}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{at}: a row that is no JSON ({error}): leave that column out") from None


def _plain(value: object) -> object:
    """As JSON has it. A struct's fields that are null are not there: a column of them has all fields in every row."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value
