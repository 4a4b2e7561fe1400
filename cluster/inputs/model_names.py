"""What a user names as a model: a directory, or a name on the Hugging Face hub, of which at most one slash is part."""

from __future__ import annotations

from pathlib import Path


def missing_directory(name: str | Path) -> str:
    """What is wrong with a name that can only be a directory's, and there is none; nothing of all others."""
    text = str(name)
    of_a_directory = text.startswith(("/", ".", "~")) or text.count("/") > 1
    if not of_a_directory or Path(text).is_dir():
        return ""
    if text.startswith("~") and Path(text).expanduser().is_dir():
        return f"there is no such directory: write {Path(text).expanduser()}"
    return "there is no such directory"
