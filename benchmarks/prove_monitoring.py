"""The proof of monitoring: the real Prometheus over real runs of both halves with their reward services, on a Ray
cluster with its metrics on. Every question of every dashboard and rule is asked; sound runs are silent; a stopped
actor and a killed driver are alerts, and end as such. `python -m benchmarks.prove_monitoring [--append FILE.md]`; about
twenty minutes on two cores. Needs prometheus (Debian: apt-get install prometheus) and rollcall-rl[lm-cpu]."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.proofs import ROLLCALL, Row, parser, report, rollcall

RAY = str(Path(sys.executable).with_name("ray"))
CONTROL, LANGUAGE = "walker", "talker"
CONTROL_RUN = (
    *("cartpole-preferences", f"name={CONTROL}", "total_env_steps=20_000_000", "eval={episodes: 5, every_steps: 40}"),
    *(
        "preferences.total_labels=400",
        "preferences.initial_labels=20",
        "preferences.epochs=10",
        "preferences.rounds=40",
    ),
    *("algorithm.epochs=2", "checkpoint.every_steps=50"),
)
LANGUAGE_RUN = (
    *("arithmetic-grpo", f"name={LANGUAGE}", "total_learner_steps=20_000", "eval={episodes: 20, every_steps: 20}"),
    *(
        "policy.warm_start={steps: 60, batch_size: 32}",
        "task={name: arithmetic, digits: 1, num_eval_rows: 20}",
        "algorithm.kl_coef=0.01",
    ),
    *("policy.tiny={hidden_size: 64, num_layers: 2, num_heads: 2, num_kv_heads: 2, intermediate_size: 128}",),
    # Or the run fixes itself after five minutes, a minute before anybody is told.
    *("actors.ticket_deadline_s=1200", "supervision.stall_timeout_s=1200"),
    *("actors.prompts_per_batch=16", "checkpoint.every_steps=40", "learner.learning_rate=1e-4"),
)
QUIET_S = 300.0


class Proof:
    """Everything that is started, and what came of it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rcm-", dir="/tmp"))  # short: Ray's sockets lie in it
        self.runs = self.folder / "runs"
        self.runs.mkdir()
        (self.folder / "token").write_text(secrets.token_hex(16))
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.url = ""

    def start(self, name: str, *command: str, **more: str) -> subprocess.Popen[bytes]:
        known = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "ROLLCALL_"))}
        environment = known | {
            **{"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")},
            **{"ROLLCALL_RUNS": str(self.runs), "RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": "200"},
            **more,
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.started[name] = process
        return process

    def said(self, name: str, words: str, timeout_s: float = 240) -> str:
        """The first line of that process that holds them."""

        def line() -> str:
            lines = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
            return next((item for item in lines if words in item), "")

        return str(self.until(line, timeout_s, f"{name} says {words!r}"))

    def until(self, condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise SystemExit(f"not within {timeout_s:.0f} s: {what}; logs are in {self.folder}")
            time.sleep(1)
        return found

    def query(self, expression: str) -> list[Any]:
        path = f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
        return found

    def firing(self, alert: str, run: str) -> bool:
        return bool(self.query(f'ALERTS{{alertname="{alert}",run="{run}",alertstate="firing"}}'))

    def steps(self, run: str) -> int:
        path = self.runs / run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def close(self) -> None:
        for process in reversed(list(self.started.values())):
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(40)
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()


def begin(proof: Proof) -> None:
    """Ray, Prometheus, a service for many, and a run of each half on that cluster."""
    gcs, dashboard, metrics, client, agent, agent_grpc = free_ports(6)
    proof.start(
        "ray",
        *(RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=8", "--node-ip-address=127.0.0.1"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--dashboard-agent-grpc-port={agent_grpc}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"),
        *("--object-store-memory=300000000", f"--temp-dir={proof.folder / 'ray'}"),
    )
    targets = proof.folder / "ray" / "prom_metrics_service_discovery.json"
    monitor = ("monitor", str(proof.runs), "--port", "0", "--ray-targets", str(targets))
    proof.start("monitor", *ROLLCALL, *monitor)
    proof.url = proof.said("monitor", "Prometheus: ").split()[1]
    proof.start("service", *ROLLCALL, "reward", "serve", "--port", "0", "--model", "main=number")
    service = proof.said("service", "http://")
    proof.said("ray", "Ray runtime started")
    proof.until(targets.exists, 120, "Ray lists its nodes")
    joined = {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    proof.start(CONTROL, *ROLLCALL, "train", *CONTROL_RUN, **joined)
    scored = (f"reward={{url: '{service}', model: main}}",)
    proof.start(LANGUAGE, *ROLLCALL, "train", *LANGUAGE_RUN, *scored, **joined)
    for run in (CONTROL, LANGUAGE):
        proof.until(partial(has_begun, proof, run), 400, f"ten steps of {run}")


def has_begun(proof: Proof, run: str) -> bool:
    return alive(proof, run) and proof.steps(run) >= 10


def alive(proof: Proof, name: str) -> bool:
    code = proof.started[name].poll()
    if code is not None:
        raise SystemExit(f"{name} has ended ({code}); see {proof.folder / name}.log")
    return True


def questions_are_answered(proof: Proof) -> Row:
    asked = rollcall("monitor", str(proof.runs), "--check", "--wait", "240")
    lines = asked.stdout.splitlines()
    for line in lines[:-1]:
        print(f"    {line}")
    return Row("`rollcall monitor --check` over both halves, both services, Ray", lines[-1], asked.returncode == 0)


def sound_runs_are_silent(proof: Proof) -> Row:
    deadline = time.monotonic() + QUIET_S
    while time.monotonic() < deadline:
        alive(proof, CONTROL), alive(proof, LANGUAGE)
        time.sleep(5)
    fired = proof.query('count by (alertname, run) (count_over_time(ALERTS{alertstate="firing"}[30m]))')
    text = ", ".join(f"{item['metric']['alertname']} ({item['metric'].get('run')})" for item in fired)
    made = {run: proof.steps(run) for run in (CONTROL, LANGUAGE)}
    return Row(f"sound runs ({made} steps) fire nothing", text or "no alert fired", not fired)


def metrics_are_cheap(proof: Proof) -> Row:
    shares = {
        item["metric"]["run"]: float(item["value"][1])
        for item in proof.query("sum by (run) (increase(rollcall_metrics_seconds_total[4m])) / 240")
    }
    text = ", ".join(f"{run} {share:.3%}" for run, share in sorted(shares.items()))
    return Row("time inside metric calls, of the run's", f"{text} (bound: 1%)", max(shares.values()) < 0.01)


def a_killed_driver_is_an_alert(proof: Proof) -> Row:
    proof.started[CONTROL].kill()
    killed = time.monotonic()
    proof.until(lambda: proof.firing("RollcallTargetDown", CONTROL), 180, "RollcallTargetDown")
    took = time.monotonic() - killed
    address = proof.started[LANGUAGE]
    environment = psutil.Process(address.pid).environ()
    proof.start(CONTROL, *ROLLCALL, "resume", str(proof.runs / CONTROL), RAY_ADDRESS=environment["RAY_ADDRESS"])
    proof.until(lambda: not proof.firing("RollcallTargetDown", CONTROL), 180, "RollcallTargetDown is over")
    return Row("SIGKILL of a driver", f"RollcallTargetDown after {took:.0f} s, over once the run is resumed", True)


def a_stopped_actor_is_an_alert(proof: Proof) -> Row:
    """In real time, by the shipped rule."""
    family = psutil.Process(proof.started["ray"].pid).children(recursive=True)
    (actor,) = (process for process in family if "LMActorProcess" in " ".join(command_of(process)))
    actor.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        proof.until(lambda: proof.firing("RollcallNoLearnerStep", LANGUAGE), 480, "RollcallNoLearnerStep")
        took = time.monotonic() - stopped
        others = proof.query('ALERTS{alertstate="firing",alertname!="RollcallNoLearnerStep"}')
    finally:
        actor.send_signal(signal.SIGCONT)
    before = proof.steps(LANGUAGE)
    proof.until(lambda: not proof.firing("RollcallNoLearnerStep", LANGUAGE), 240, "RollcallNoLearnerStep is over")
    proof.until(lambda: proof.steps(LANGUAGE) > before + 2, 120, "more steps")
    beside = ", ".join(sorted({item["metric"]["alertname"] for item in others})) or "no other alert"
    text = f"RollcallNoLearnerStep after {took:.0f} s ({beside}), over after SIGCONT"
    return Row("SIGSTOP of the vLLM actor of a run", text, True)


def books_balance(proof: Proof) -> Row:
    for run in (CONTROL, LANGUAGE):
        proof.started[run].send_signal(signal.SIGINT)
    codes = {run: proof.started[run].wait(180) for run in (CONTROL, LANGUAGE)}
    audits = [rollcall("audit", str(proof.runs / run)).returncode for run in codes]
    left = sorted(path.name for path in (proof.runs / ".prometheus").glob("*.json"))
    good = set(codes.values()) == {130} and not any(audits)
    text = f"exit codes {codes}, audits {audits}; still announced: {left}"
    return Row("stopped with Ctrl-C, both runs sign off and balance", text, good and len(left) == 1)


def command_of(process: psutil.Process) -> list[str]:
    try:
        found: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        found = []
    return found


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


PROOFS: dict[str, Callable[[Proof], Row]] = {
    "questions": questions_are_answered,
    "silence": sound_runs_are_silent,
    "cost": metrics_are_cheap,
    "killed": a_killed_driver_is_an_alert,
    "stopped": a_stopped_actor_is_an_alert,
    "books": books_balance,
}


def main() -> int:
    args = parser(__doc__, PROOFS).parse_args()
    if shutil.which("prometheus") is None:
        raise SystemExit("needs prometheus (Debian: apt-get install prometheus)")
    proof = Proof()
    try:
        begin(proof)
        wanted = [prove for name, prove in PROOFS.items() if not args.only or name in args.only]
        return report((prove(proof) for prove in wanted), args.append)
    finally:
        proof.close()


if __name__ == "__main__":
    sys.exit(main())
