"""Says where metrics are served, in files that Prometheus reads (file_sd), so that nobody keeps a list. One file for
each endpoint, beside the runs; it goes when the endpoint ends well. Must never know what is served there.

Whoever dies without a word leaves its file behind: Prometheus then sees a target that is down, which is the truth, and
an alert. The file goes when the run is resumed, when somebody else takes the address, or when `rollcall monitor` has
found nobody there for an hour.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from rollcall.cluster.files import write_aside

FOLDER = ".prometheus"  # of the directory that holds the runs
CONNECT_TIMEOUT_S = 0.5
FORGOTTEN_S = 86_400.0  # after which a file that nobody answers for is no news any more

_log = logging.getLogger(__name__)


class Announcement:
    """One endpoint's file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def withdraw(self) -> None:
        with suppress(OSError):  # the folder goes with its last file
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()


def announce(runs: Path, name: str, address: str, labels: Mapping[str, str]) -> Announcement | None:
    """Writes `<runs>/.prometheus/<name>.json`. `address`: host:port, or a URL. None where it cannot be written: then
    nobody finds the endpoint by itself, and all else goes on.
    """
    target = _reachable(address)
    path = runs / FOLDER / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other, targets in endpoints(path.parent):
            taken_over = target in targets
            forgotten = time.time() - other.stat().st_mtime > FORGOTTEN_S and not any(map(answers, targets))
            if other != path and (taken_over or forgotten):
                other.unlink(missing_ok=True)
        write_aside(path, json.dumps([{"targets": [target], "labels": dict(labels)}]) + "\n")
    except OSError as error:
        _log.info("Prometheus will not find %s by itself: %s", target, error)
        return None
    return Announcement(path)


def endpoints(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each file with its targets; what cannot be read has none."""
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            groups = json.loads(path.read_text())
            yield path, [str(target) for group in groups for target in group["targets"]]
        except (OSError, ValueError, KeyError, TypeError):
            yield path, []


def answers(target: str) -> bool:
    """Whether anybody listens there."""
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def _reachable(address: str) -> str:
    """host:port as another process finds it: who listens everywhere is found by this machine's name."""
    host, _, port = (urlsplit(address).netloc if "://" in address else address).rpartition(":")
    if host in ("0.0.0.0", "[::]", "::", ""):
        host = socket.gethostname()
        with suppress(OSError):  # a pod's name is known to itself alone, its address to all
            host = socket.gethostbyname(host)
    return f"{host}:{port}"
