"""Data files that people give: one JSON object a line, plain or gzipped. What is in the file is checked here, once for
tasks and preferences alike; what the objects mean is for whoever reads them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.tables import is_table, table_lines

_GZIP = b"\x1f\x8b"
_TO_JSON_LINES = "to_json('rows.jsonl', orient='records', lines=True)"
_DATASETS = "write it with load_from_disk(...).to_json('rows.jsonl') of the package datasets"
# How files of other formats begin, what they are, and how to get from there to here.
_OTHERS = (
    (b"ARROW1", "an Arrow file", f"write it with pandas.read_feather(...).{_TO_JSON_LINES}"),
    (b"\xff\xff\xff\xff", "an Arrow stream", _DATASETS),
    (b"PK\x03\x04", "a zip archive (as .xlsx and .npz are)", "unpack or convert it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with zstd -d"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it with unxz"),
    (b"SQLite format 3\x00", "an SQLite database", f"write it with pandas.read_sql(...).{_TO_JSON_LINES}"),
    (b"\x89HDF", "an HDF5 file", f"write it with pandas.read_hdf(...).{_TO_JSON_LINES}"),
    (b"\x80\x04\x95", "a pickle", "a pickle can run code when it is read: write its rows as JSON"),
    (b"\x80\x05\x95", "a pickle", "a pickle can run code when it is read: write its rows as JSON"),
    (b"\xff\xfe", "text in UTF-16", "save it as UTF-8: iconv -f utf-16 -t utf-8"),
    (b"\xfe\xff", "text in UTF-16", "save it as UTF-8: iconv -f utf-16 -t utf-8"),
)


def read_json_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(source, line) of every line that is not blank; the source is "file:line", for messages. Of a table (tables.py),
    its rows as such lines.

    A file is gzipped if it begins as gzip does, whatever it is called. A byte order mark and the line ends of Windows
    and of old Macs are no part of a line.

    Raises:
      BadInput: in one line, where there is no such file, it is no text in UTF-8, or it is of another format.
    """
    if is_table(path.expanduser()):
        yield from table_lines(path.expanduser())
        return
    content = _content(path)
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if raw.strip():
            try:
                yield f"{path}:{number}", raw.decode("utf-8")
            except UnicodeDecodeError:
                remedy = "save the file as UTF-8, say with iconv -f latin1 -t utf-8"
                raise BadInput(f"{path}:{number}: not UTF-8: {remedy}; nothing of it was loaded") from None


def parse_object(line: str) -> dict[str, Any]:
    """One line's object.

    Raises:
      ValueError: in one line: no JSON, no object, a key given twice, NaN, or half of a character.
    """
    try:
        values = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1}){_what_it_is(line, error)}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"a JSON {type(values).__name__}, not an object: write {{...}}")
    # Only an escape can bring one in: what is UTF-8 has none.
    if "\\ud" in line.lower() and any("\ud800" <= c <= "\udfff" for c in json.dumps(values, ensure_ascii=False)):
        raise ValueError("half a character: a surrogate \\ud800 to \\udfff stands alone")
    return values


def number_as_written(line: str, key: str) -> str:
    """The number at `key` of a line's object, letter by letter: 1e22 and 5.0 stay what they were written as."""
    return str(json.loads(line, parse_float=str, parse_int=str)[key])


def _content(path: Path) -> bytes:
    try:
        content = path.expanduser().read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise BadInput(f"{path}: cannot be read: there is no such file: name one with one JSON object a line") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path}: the gzip is damaged ({error}); nothing of it was loaded") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
    for start, what, remedy in _OTHERS:
        if content.startswith(start):
            raise BadInput(f"{path}: {what}, not one JSON object a line: {remedy}")
    return content


def _what_it_is(line: str, error: json.JSONDecodeError) -> str:
    """What people have in place of JSON lines, if it is one of those."""
    text = line.strip()
    if text in ("[", "[{"):
        return ": one JSON array over several lines: write each object as a line, with jq -c '.[]'"
    if text == "{":
        return ": one JSON object over several lines: write each object as a line, with jq -c ."
    if error.msg == "Extra data" and text[error.pos :].strip() == ",":
        return ": there is a comma after the object: remove it"
    if text.startswith("{'"):
        return ": Python's notation: write it with json.dumps"
    if not text.startswith(("{", "[", '"')) and ("," in text or "\t" in text):
        return f": this looks like CSV: write it with pandas.read_csv(...).{_TO_JSON_LINES}"
    return ""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} is given twice: keep one")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")
