"""Files that appear whole or not at all: written aside, then renamed into place."""

from __future__ import annotations

import os
from pathlib import Path


def write_aside(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Replaces `path` in one move, once the bytes are on the disk. `mode`: before the umask."""
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)  # of a process that was killed: its mode may be another
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
