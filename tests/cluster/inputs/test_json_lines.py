"""Files that people give as JSON lines, and what is said of those that are something else."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.json_lines import number_as_written, parse_object, read_json_lines

ROWS = [{"prompt": f"{i}\u2028\x0b\x85?", "answer": i} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        LINES.rstrip("\n").encode(),
        b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\r\n").encode(),
        LINES.replace("\n", "\r").encode(),
        gzip.compress(LINES.encode()),
        gzip.compress(b"\xef\xbb\xbf" + LINES.encode()),
    ],
    ids=["unix", "without a last line end", "windows with a mark", "old mac", "gzip", "gzip with a mark"],
)
def test_line_ends_marks_and_gzip_are_no_part_of_a_line(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "rows.txt", content)
    read = list(read_json_lines(path))
    assert [parse_object(line) for _, line in read] == ROWS
    assert read[0][0] == f"{path}:1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1\x15\x04", "a Parquet file(, which the package pyarrow reads: pip install| that cannot be read: )"),
        (b"ARROW1\x00\x00", "an Arrow file"),
        (b"PK\x03\x04\x14", "a zip archive"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed with zstd"),
        (pickle.dumps([1, 2]), "a pickle"),
        (LINES.encode("utf-16"), "text in UTF-16"),
        ('{"a": "caf\xe9"}'.encode("latin-1"), ":1: not UTF-8: save the file as UTF-8"),
        (gzip.compress(LINES.encode())[:-9], "the gzip is damaged"),
    ],
    ids=["parquet", "arrow", "zip", "zstd", "pickle", "utf-16", "latin-1", "damaged gzip"],
)
def test_files_of_other_formats_are_called_what_they_are(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        list(read_json_lines(write(tmp_path / "rows.jsonl", content)))
    assert "\n" not in str(caught.value)


def test_a_directory_without_data_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a directory, with neither Parquet files nor a saved data set"):
        list(read_json_lines(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prompt,answer", "not JSON .* looks like CSV"),
        ("prompt\tanswer", "not JSON .* looks like CSV"),
        ("[", "not JSON .* one JSON array over several lines"),
        ("{", "not JSON .* one JSON object over several lines"),
        ('{"a": 1},', "not JSON .* a comma after the object: remove it"),
        ("{'a': 1}", "not JSON .* Python's notation"),
        ('{"a": 1} {"a": 2}', "not JSON .Extra data"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        ('{"a": NaN}', "NaN is no number of JSON's"),
        ('{"a": [1, -Infinity]}', "-Infinity is no number of JSON's"),
        ('{"a": "\\ud83d"}', "half a character"),
        ('{"\\uDC00": 1}', "half a character"),
        ("[1]", "a JSON list, not an object"),
        ("7", "a JSON int, not an object"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_in_one(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_object(line)
    assert "\n" not in str(caught.value)


def test_whole_characters_that_are_written_as_escapes_are_taken() -> None:
    assert parse_object('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}
    assert parse_object(r'{"a": "\\ud83d"}') == {"a": r"\ud83d"}


def test_numbers_are_kept_as_they_were_written() -> None:
    line = '{"a": 1e22, "b": -0.0, "c": 12345678901234567890, "d": 0.10}'
    assert [number_as_written(line, key) for key in "abcd"] == ["1e22", "-0.0", "12345678901234567890", "0.10"]
