"""The one file format of preferences, read and written: what raters export, and what reward models and DPO learn from.
One JSON object a line, plain or gzipped. Must never know who labels, nor what learns from it.

  two texts     {"prompt": str | "messages": [...], "chosen": str, "rejected": str, "margin": float?, "tie": bool?}
  HH's format   {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}; the turns they share are the prompt
  a ranking     {"prompt": str | "messages": [...], "responses": [str, ...], "ranks": [int, ...]}, 0 the best
  two segments  {"segments": [Segment, Segment], "choice": "left" | "right" | "tie", "env": str?}

Any of them may also have "group" and "rater"; what else a line says is kept in `details`.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable
from pathlib import Path

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.json_lines import read_json_lines
from rollcall.reward_service.preferences.lines import (
    Preference,
    PreferencePair,
    Prompt,
    Ranking,
    SegmentPair,
    parse_preference,
    preference_line,
    segment_space,
)


def read_preferences(path: Path) -> list[Preference]:
    """Every line of the file, or none.

    Raises:
      BadInput: naming file and line, for the first line that is no preference; or the file is missing or has none.
    """
    preferences: list[Preference] = []
    for source, line in read_json_lines(path):
        try:
            preferences.append(parse_preference(line, source=source))
        except ValueError as error:
            raise BadInput(f"{source}: {error}; mend the line: nothing of the file was loaded") from None
    if not preferences:
        raise BadInput(f"{path}: no preference in it: one JSON object a line is needed")
    return preferences


def read_text_preferences(path: Path) -> list[PreferencePair | Ranking]:
    """As read_preferences, for files of texts. A pair of segments in it is a bad line."""
    texts: list[PreferencePair | Ranking] = []
    for preference in read_preferences(path):
        if isinstance(preference, SegmentPair):
            raise BadInput(f"{preference.source}: segments, and texts are needed; nothing of the file was loaded")
        texts.append(preference)
    return texts


def read_segment_preferences(path: Path) -> list[SegmentPair]:
    """As read_preferences, for files of segments. All must observe and act in the same shapes and dtypes."""
    pairs: list[SegmentPair] = []
    for preference in read_preferences(path):
        if not isinstance(preference, SegmentPair):
            raise BadInput(f"{preference.source}: texts, and segments are needed; nothing of the file was loaded")
        pairs.append(preference)
        space, first = segment_space(preference.segments[0]), segment_space(pairs[0].segments[0])
        if space != first:
            raise BadInput(
                f"{preference.source}: segments of {space}, and those of {pairs[0].source} are of {first}: a file has "
                "segments of one env; nothing of it was loaded"
            )
    return pairs


def write_preferences(path: Path, preferences: Iterable[Preference]) -> int:
    """Writes the file, aside first and then in its place. Returns the number of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    count = 0
    with gzip.open(aside, "wb") if path.suffix == ".gz" else aside.open("wb") as file:
        for preference in preferences:
            file.write(preference_line(preference).encode())
            count += 1
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return count


__all__ = [
    "Preference",
    "PreferencePair",
    "Prompt",
    "Ranking",
    "SegmentPair",
    "parse_preference",
    "preference_line",
    "read_preferences",
    "read_segment_preferences",
    "read_text_preferences",
    "write_preferences",
]
