"""A Prometheus of this machine as a child of this process: configured with the shipped rules and the user's
directories, bound to loopback and to this process's life, asked over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.metrics.discovery import FOLDER
from rollcall.deploy.tools.monitoring.metric_names import rule_files, shipped

DEFAULT_PORT = 9090
START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 30.0
RETENTION_SIZE = "1GB"
_RUNBOOK = "docs/runbook.md"  # as the shipped rules have it

# What runs between fork and Prometheus: the kernel ends it with the thread that forked us, which is the main one.
_BOUND_EXEC = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(parent):
    sys.exit(43)
os.execv(command[0], command)
"""


@dataclass(frozen=True)
class Settings:
    """Of one server."""

    runs: Path  # the directory that holds runs
    port: int | None = None  # None: 9090, or a free one
    ray_targets: Path = Path("/tmp/ray/prom_metrics_service_discovery.json")  # where a Ray head writes it
    retention: str = "15d"
    every: str = "5s"  # how often everything is scraped, and the rules are looked at
    runbook: str = _RUNBOOK  # the page that alerts link to

    @property
    def directory(self) -> Path:
        """Everything of ours: config, data, log."""
        return self.runs.resolve() / ".monitor"


class Prometheus:
    """Where one answers, ours or another's."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def ask(self, path: str, **parameters: str) -> Any:
        """`data` of the answer.

        Raises:
          RollcallError: what Prometheus says is wrong with the question, or that it does not answer.
        """
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}{query}", timeout=ANSWER_TIMEOUT_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise RollcallError(_said(error)) from None
        except (OSError, ValueError, KeyError) as error:
            raise RollcallError(f"{self.url} does not answer: {error}") from None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series of an instant query; a scalar is a series without labels."""
        data = self.ask("query", query=expression)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        found: list[dict[str, Any]] = data["result"]
        return found

    @property
    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class LocalPrometheus(Prometheus):
    """One of ours, running from `start` to `stop`."""

    def __init__(self, settings: Settings) -> None:
        self._binary = find_prometheus()
        self._settings = settings
        self._port = _free_port(settings.port)
        self._process: subprocess.Popen[bytes] | None = None
        super().__init__(f"http://127.0.0.1:{self._port}")

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def log_path(self) -> Path:
        return self._settings.directory / "prometheus.log"

    def start(self) -> None:
        """Call it on the main thread, whose end is the server's.

        Raises:
          RollcallError: it ended, or was not ready in time; the message has its last words.
        """
        folder = self._settings.directory
        config = write_config(self._settings)
        arguments = [
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--storage.tsdb.retention.time={self._settings.retention}",
            f"--storage.tsdb.retention.size={RETENTION_SIZE}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=warn",
        ]
        bound = [sys.executable, "-I", "-S", "-c", _BOUND_EXEC, str(os.getpid()), self._binary]
        with self.log_path.open("ab") as log:
            # In a process group of its own: a Ctrl-C is for us, who end it.
            self._process = subprocess.Popen(
                [*bound, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RollcallError(f"Prometheus does not start; the end of {self.log_path}: {self._last_words()}")
            time.sleep(0.1)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, timeout_s: float = 15.0) -> None:
        """SIGTERM (it writes its data out), and SIGKILL after the deadline."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        lines = [line for line in self.log_path.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][-400:] if lines else "(empty)"


def find_prometheus() -> str:
    found = shutil.which("prometheus")
    if found is None:
        raise BadInput(
            "no prometheus on PATH: install it (Debian and Ubuntu: apt-get install prometheus; others: the binary of "
            "prometheus.io), or point a Prometheus of yours at runs/.prometheus/*.json"
        )
    return found


def write_config(settings: Settings) -> Path:
    """The shipped configuration and rules with the user's directories, in the server's own."""
    folder = settings.directory
    (folder / "rules").mkdir(parents=True, exist_ok=True)
    (settings.runs.resolve() / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, content in rule_files().items():
        text = yaml.safe_dump(content, sort_keys=False, width=1000, allow_unicode=True)
        (folder / "rules" / name).write_text(text.replace(_RUNBOOK, settings.runbook), encoding="utf-8")
    config = yaml.safe_load(shipped("prometheus", "prometheus.yml").read_text(encoding="utf-8"))
    config["rule_files"] = [str(folder / "rules" / "*.yml")]
    targets = {
        "rollcall": settings.runs.resolve() / FOLDER / "*.json",
        "ray": settings.ray_targets.absolute(),
    }
    config["global"] = {"scrape_interval": settings.every, "evaluation_interval": settings.every}
    for job in config["scrape_configs"]:
        found = {"files": [str(targets[job["job_name"]])], "refresh_interval": settings.every}
        job["file_sd_configs"] = [found]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError):
        return f"HTTP {error.code}"


def _free_port(wanted: int | None) -> int:
    """The one asked for; else the usual one, or any.

    Raises:
      BadInput: the one asked for is taken.
    """
    for port in (DEFAULT_PORT, 0) if wanted is None else (wanted,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise BadInput(f"--port = {wanted} (command line): in use; choose another, or leave it out for a free one")
