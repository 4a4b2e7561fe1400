"""Clips on the disk: what was recorded, and what was drawn once."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from pydantic import ValidationError

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.preferences.clips import DRAWING, Clip, RecordedFrames, draw
from rollcall.reward_service.preferences.log import write_whole
from rollcall.reward_service.preferences.records import Comparison, SegmentCandidate


class ClipStore:
    """`recorded/` is kept; `drawn/` is a cache, and may be deleted."""

    def __init__(self, directory: Path) -> None:
        self._recorded, self._drawn = directory / "recorded", directory / "drawn"
        for folder in (self._recorded, self._drawn):
            folder.mkdir(parents=True, exist_ok=True)
        self._drawing = threading.Lock()

    def keep(self, frames: RecordedFrames) -> str:
        """The name of frames, by their content."""
        clip = frames.clip().model_dump_json()
        digest = hashlib.sha256(clip.encode()).hexdigest()[:32]
        path = self._recorded / f"{digest}.json"
        if not path.exists():
            write_whole(path, clip.encode())
        return digest

    def check(self, comparison: Comparison) -> None:
        """Raises ValueError where a candidate names frames that were never given."""
        for candidate in comparison.candidates:
            clip = candidate.clip if isinstance(candidate, SegmentCandidate) else None
            if clip is not None and not (self._recorded / f"{clip}.json").exists():
                raise ValueError(f"there is no clip {clip}: give its frames first")

    def clip(self, comparison: Comparison, index: int) -> Clip:
        """Of one candidate.

        Raises:
          BadInput: recorded frames that are gone or damaged.
        """
        candidate = comparison.candidates[index]
        assert isinstance(candidate, SegmentCandidate)
        if candidate.clip is not None:
            path = self._recorded / f"{candidate.clip}.json"
            try:
                return Clip.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                raise BadInput(f"{path}: recorded frames are gone or damaged: restore the file") from None
        path = self._drawn / f"{comparison.id}-{index}-{DRAWING}.json"
        with self._drawing:  # the same clip is often asked for twice at once
            try:
                return Clip.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                pass
            others = [c.segment for c in comparison.candidates if isinstance(c, SegmentCandidate)]
            clip = draw(candidate.segment, env_id=candidate.env_id, beside=others)
            write_whole(path, clip.model_dump_json().encode())
            return clip
