"""Tables are read as the JSON lines that they would be: Parquet, folders of it, and what the package datasets saves."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.json_lines import parse_object, read_json_lines
from tests.needs import needs, require_module

ROWS: list[dict[str, Any]] = [
    {"prompt": "2+2=", "answer": 4, "messages": [{"role": "user", "content": "2+2="}]},
    {"prompt": "a\nb é", "answer": 5, "messages": [{"role": "assistant", "tool_calls": [{"name": "f", "n": 1.5}]}]},
]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [parse_object(line) for _, line in read_json_lines(path)]


def write_parquet(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    pyarrow, parquet = require_module("pyarrow"), require_module("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@needs("pyarrow")
def test_a_parquet_files_rows_are_what_was_written_and_nulls_of_structs_are_not_there(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet")
    assert rows_of(path) == ROWS
    assert [source for source, _ in read_json_lines(path)] == [f"{path}:1", f"{path}:2"]


@needs("pyarrow")
def test_a_folder_of_parquet_files_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00001.parquet", ROWS[1:])
    write_parquet(tmp_path / "train-00000.parquet", ROWS[:1])
    assert rows_of(tmp_path) == ROWS


@needs("pyarrow")
def test_dates_and_bytes_are_as_json_has_them(tmp_path: Path) -> None:
    row = {"day": datetime.date(2026, 11, 28), "bytes": b"\x00\xff", "none": float("nan")}
    assert rows_of(write_parquet(tmp_path / "rows.parquet", [row])) == [
        {"day": "2026-11-28", "bytes": "AP8=", "none": None}
    ]


@needs("pyarrow")
def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInput, match=r"rows\.parquet: a Parquet file that cannot be read: ") as caught:
        rows_of(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_list_of_splits_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text("{")
    with pytest.raises(BadInput, match=r"dataset_dict\.json: damaged: "):
        rows_of(tmp_path)


@needs("datasets")
def test_what_the_package_datasets_saves_is_read_and_of_several_splits_one_must_be_named(tmp_path: Path) -> None:
    datasets = require_module("datasets")
    train, test = datasets.Dataset.from_list(ROWS[:1]), datasets.Dataset.from_list(ROWS[1:])
    train.save_to_disk(str(tmp_path / "one"))
    assert rows_of(tmp_path / "one") == ROWS[:1]
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "both"))
    assert rows_of(tmp_path / "both" / "test") == ROWS[1:]
    with pytest.raises(BadInput, match=r"both: a data set of several splits: name one: .*both/train"):
        rows_of(tmp_path / "both")


@needs("datasets")
def test_a_name_is_loaded_by_the_package_datasets_and_offline_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = require_module("datasets")
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **named: Any) -> Any:
        asked.append((arguments, named))
        if arguments[0] == "me/gone":
            raise ConnectionError("Couldn't reach 'me/gone' on the Hub\n(offline)")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert rows_of(Path("hub:me/sums")) == ROWS
    assert rows_of(Path("hub:me/sums:main:test")) == ROWS
    assert asked == [(("me/sums", None), {"split": "train"}), (("me/sums", "main"), {"split": "test"})]
    with pytest.raises(BadInput, match=r"hub:me/gone: cannot be loaded \(ConnectionError: Couldn't reach") as caught:
        rows_of(Path("hub:me/gone"))
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="write hub:OWNER/NAME:SUBSET:SPLIT"):
        rows_of(Path("hub:me/sums/more"))


@pytest.mark.parametrize("package", ["pyarrow", "datasets"])
def test_without_the_package_the_line_says_which_extra_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    path = tmp_path / "rows.parquet" if package == "pyarrow" else Path("hub:me/sums")
    with pytest.raises(BadInput, match=r"pip install 'rollcall-rl\[datasets\]'"):
        rows_of(path)


def test_lines_of_json_are_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    assert rows_of(tmp_path / "rows.jsonl") == ROWS
