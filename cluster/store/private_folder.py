"""Folders for sockets: short of path, shut to other users, gone with the process that made them. Must never know what
is put into them."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PREFIX = "rollcall-live-"
# A socket's path has 107 bytes, of which Ray takes 68 (session_<date>_<time>_<microseconds>_<pid>/sockets/<name>).
LONGEST_PATH = 38


class PrivateFolder:
    """A new folder that only this user may enter, locked for as long as its owner lives: by that whoever begins or ends
    next knows one that was left behind, and systemd-tmpfiles, which takes away what is old in /tmp, leaves it alone."""

    def __init__(self) -> None:
        sweep()
        self._lock = -1
        while self._lock < 0:  # one that is not locked yet looks left behind to whoever sweeps just now
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_place()))  # 0700, whatever the umask
            self._lock = _locked(self.path)

    def close(self) -> None:
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1
            sweep()


def _locked(path: Path) -> int:
    """A descriptor that holds the folder; -1 where somebody has taken it away."""
    with suppress(FileNotFoundError):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        if path.exists():
            return folder
        os.close(folder)
    return -1


def sweep() -> None:
    """Removes the folders of this user's processes that were killed."""
    for path in left_behind():
        shutil.rmtree(path, ignore_errors=True)


def left_behind() -> Iterator[Path]:
    """This user's folders that no process holds."""
    for path in Path(_place()).glob(PREFIX + "*"):
        with suppress(OSError):
            state = path.lstat()
            if state.st_uid != os.geteuid():
                continue
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path
            finally:
                os.close(folder)


def _place() -> str:
    """Where temporary files go, unless that is too long for a socket, or others may move what lies there. Last of all
    $XDG_RUNTIME_DIR: it is memory, and is emptied when the user logs out, which a run outlives."""
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    short = [place for place in places if len(os.fsencode(place)) + len(f"/{PREFIX}") + 8 <= LONGEST_PATH]
    return next(filter(_ours_stays, short), "/tmp")


def _ours_stays(place: str) -> bool:
    try:
        mode = os.stat(place).st_mode
    except OSError:
        return False
    return os.access(place, os.W_OK) and (bool(mode & stat.S_ISVTX) or not mode & 0o022)
