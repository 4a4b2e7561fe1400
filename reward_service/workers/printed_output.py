"""What processes print, passed on to our own standard error: of a run's private service that is its log. A process that
prints without an end must not fill the disk: beyond an allowance the rest is counted and dropped."""

from __future__ import annotations

import os
import sys
import threading
import time

BURST_BYTES = 4 << 20
BYTES_PER_S = 16 << 10  # in the long run
_PART_BYTES = 1 << 16


class PrintedOutput:
    """A pipe to write to, `descriptor`, and a thread that reads it until `close`."""

    def __init__(self, *, burst_bytes: int = BURST_BYTES, bytes_per_s: float = BYTES_PER_S) -> None:
        self._reader, self.descriptor = os.pipe()
        self._burst_bytes, self._bytes_per_s = burst_bytes, bytes_per_s
        self._allowance = float(burst_bytes)
        self._topped_up = time.monotonic()
        self._dropped = 0
        self._thread = threading.Thread(target=self._pass_on, name="printed-output", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The thread ends with the last process that holds the pipe. A second call does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _pass_on(self) -> None:
        while part := os.read(self._reader, _PART_BYTES):
            now = time.monotonic()
            grown = self._allowance + (now - self._topped_up) * self._bytes_per_s
            self._allowance, self._topped_up = min(float(self._burst_bytes), grown), now
            if self._allowance < (_PART_BYTES if self._dropped else len(part)):
                self._dropped += len(part)
                continue
            self._allowance -= len(part)
            if self._dropped:
                part = f"\n[{self._dropped:,} bytes of output are left out]\n".encode() + part
                self._dropped = 0
            _write(part)
        if self._dropped:
            _write(f"\n[{self._dropped:,} bytes of output are left out]\n".encode())
        os.close(self._reader)


def _write(part: bytes) -> None:
    try:
        sys.stderr.flush()
        while part:
            part = part[os.write(2, part) :]
    except OSError:
        pass  # nobody reads it any more, or the disk is full: a score does not depend on it
