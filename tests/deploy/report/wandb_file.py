"""Reads what wandb keeps of a run offline: LevelDB's log format, a protobuf record in each entry."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def entries(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    at, parts = 7, []
    while at + _HEADER <= len(content):
        room = _BLOCK - at % _BLOCK
        if room < _HEADER:  # what is left of a block is padding
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + _HEADER])
        if kind == 0:
            break
        parts.append(content[at + _HEADER : at + _HEADER + length])
        at += _HEADER + length
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
    """(each step's numbers by name, the settings, the run)."""
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    run: Any = None
    for entry in entries(path):
        record: Any = messages.Record()
        record.ParseFromString(entry)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history.append({(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item})
        elif kind == "run":
            run = record.run
            config |= {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in run.config.update}
        elif kind == "config":
            config |= {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.config.update}
    return history, config, run
