"""A real Ray cluster of two nodes on this machine, under a token, for tests and proofs: `ray start --block` twice, on
ports and in a folder of its own. What was started is ended by its id."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.waiting import eventually

RAY = [str(Path(sys.executable).with_name("ray"))]
ROLLCALL = [sys.executable, "-m", "rollcall.deploy.cli"]
START_TIMEOUT_S = 180.0
OBJECT_STORE_BYTES = 200_000_000


class TwoNodes:
    """A head and a worker. The folder is short: Ray puts sockets into it, whose paths have a limit."""

    def __init__(self, *, head_cpus: int = 1, worker_cpus: int = 2, labels: str = "zone=b") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rcj-", dir="/tmp"))
        self.runs = self.folder / "runs"
        self.work = self.folder / "work"  # the user's working directory
        for folder in (self.runs, self.work, self.folder / "home"):
            folder.mkdir()
        self.token = secrets.token_hex(16)
        (self.folder / "token").write_text(self.token)
        (self.folder / "token").chmod(0o600)
        self._head_cpus, self._worker_cpus, self._labels = head_cpus, worker_cpus, labels
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        gcs, dashboard = _free_ports(2)
        self.address, self.dashboard = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        try:
            self._start("head", ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}"], self._head_cpus)
            self.start_worker()
            eventually(lambda: self.alive() == 2, START_TIMEOUT_S, "two nodes")
        except BaseException:
            self.close()
            raise

    def environment(self, **more: str) -> dict[str, str]:
        """Of a user of the cluster, with the token."""
        known = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "ROLLCALL_"))}
        return known | {
            "HOME": str(self.folder / "home"),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_health_check_period_ms": "1000",  # a node that is gone is noticed in five seconds, not in fifteen
            "ROLLCALL_RUNS": str(self.runs),
            **more,
        }

    def start_worker(self, **environment: str) -> None:
        """Also when the one before was killed."""
        arguments = [f"--address={self.address}", f"--labels={self._labels}"]
        self._start("worker", arguments, self._worker_cpus, **environment)

    def kill_worker(self) -> None:
        """The node goes with all that runs on it, at once."""
        self._kill("worker")

    def alive(self) -> int:
        """Nodes that Ray believes in."""
        code = (
            "import logging, ray; ray.init(logging_level=logging.CRITICAL, log_to_driver=False);"
            "print('alive', sum(node['Alive'] for node in ray.nodes()))"
        )
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=self.environment(RAY_ADDRESS=self.address),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired:  # it came too early, and waits for what is not there: the next one may not
            return 0
        return int(done.stdout.split()[-1]) if "alive" in done.stdout else 0

    def rollcall(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command from outside the cluster's jobs, as RAY_ADDRESS says."""
        return subprocess.run(
            [*ROLLCALL, *arguments],
            cwd=self.work,
            env=self.environment(**{"RAY_ADDRESS": self.address, **environment}),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def job(self, *arguments: str, timeout_s: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job ...`"""
        return subprocess.run(
            [*RAY, "job", *arguments],
            cwd=self.work,
            env=self.environment(RAY_API_SERVER_ADDRESS=self.dashboard, **environment),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def submit(
        self,
        submission_id: str,
        *arguments: str,
        wait: bool = False,
        metadata: Mapping[str, str] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        timeout_s: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- rollcall ARGUMENTS`"""
        options = ["--submission-id", submission_id, "--working-dir", "."]
        options += [] if wait else ["--no-wait"]
        options += ["--metadata-json", json.dumps(metadata)] if metadata else []
        options += ["--runtime-env-json", json.dumps(runtime_env)] if runtime_env else []
        return self.job("submit", *options, "--", *ROLLCALL, *arguments, timeout_s=timeout_s)

    def info(self, submission_id: str) -> dict[str, Any]:
        """What Ray knows of a job: status, driver_exit_code, metadata and so on."""
        found: dict[str, Any] = json.loads(self._get(f"/api/jobs/{submission_id}"))
        return found

    def logs(self, submission_id: str) -> str:
        return str(json.loads(self._get(f"/api/jobs/{submission_id}/logs"))["logs"])

    def stop(self, submission_id: str) -> None:
        """As `ray job stop` does, without the seconds that the command takes to start."""
        self._get(f"/api/jobs/{submission_id}/stop", method="POST")

    def _get(self, path: str, method: str = "GET") -> bytes:
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.dashboard + path, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            body: bytes = answer.read()
        return body

    def wait(self, submission_id: str, timeout_s: float = 200) -> str:
        """Until it has ended; how."""

        def end() -> str:
            status = str(self.info(submission_id)["status"])
            return status if status in ("SUCCEEDED", "FAILED", "STOPPED") else ""

        found: str = eventually(end, timeout_s, f"end of {submission_id}")
        return found

    def steps(self, run: str) -> list[dict[str, Any]]:
        path = self.runs / run / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def wait_for_step(self, run: str, step: int, timeout_s: float = 150) -> None:
        eventually(lambda: len(self.steps(run)) > step, timeout_s, f"step {step} of {run}")

    def summary(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runs / run / "summary.json").read_text())
        return found

    def processes(self) -> list[psutil.Process]:
        """All that runs on the two nodes."""
        found = []
        for node in self._nodes.values():
            try:
                parent = psutil.Process(node.pid)
                found += [parent, *parent.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found

    def close(self) -> None:
        for name in list(self._nodes):
            self._kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, arguments: Sequence[str], num_cpus: int, **environment: str) -> None:
        agent, agent_grpc, metrics, client = _free_ports(4)
        command = [*RAY, "start", "--block", "--disable-usage-stats", *arguments, f"--num-cpus={num_cpus}"]
        # As on two machines: an address of its own, and a folder of its own into which Ray unpacks what a job brings.
        command += [f"--node-ip-address={'127.0.0.1' if name == 'head' else '127.0.0.2'}"]
        command += [f"--temp-dir={self.folder / name}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
        command += [f"--metrics-export-port={metrics}"]
        if name == "head":
            command += [f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._nodes[name] = subprocess.Popen(
                command, env=self.environment(**environment), cwd="/", stdout=log, stderr=log, start_new_session=True
            )

    def _kill(self, name: str) -> None:
        node = self._nodes.pop(name)
        try:
            parent = psutil.Process(node.pid)
            victims = [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            victims = []
        for victim in victims:
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
        node.wait()
        psutil.wait_procs(victims, timeout=20)


def _free_ports(count: int) -> list[int]:
    """Below the range from which the kernel gives ports to connections: nobody else comes by one in between."""
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
