"""Files that appear whole or not at all: written aside, then renamed into place; and read, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_aside(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Replaces `path` in one move, once the bytes are on the disk. `private`: readable by this user alone."""
    aside = path.with_name(path.name + ".new")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666), "wb") as file:
        if private:
            os.fchmod(file.fileno(), 0o600)  # it may be of a process that was killed
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when it is not there or not whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
