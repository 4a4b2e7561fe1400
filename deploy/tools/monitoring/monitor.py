"""`rollcall monitor`: a Prometheus over a directory of runs for as long as the command lasts, its alerts as lines, and
where to look; or, with --check, whether everything that the dashboards and rules ask has an answer."""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.metrics.discovery import FOLDER, answers, endpoints
from rollcall.deploy.rundir.jobs import runs_root
from rollcall.deploy.tools.monitoring.check import Check, Finding
from rollcall.deploy.tools.monitoring.metric_names import shipped
from rollcall.deploy.tools.monitoring.prometheus_server import LocalPrometheus, Prometheus, Settings

LOOK_EVERY_S = 2.0
MOURNED_S = 3600.0  # how long a target that nobody answers for stays, and with it its alert
_SETTLE_S = 2.0  # between two checks

# What to look at first, as graphs of Prometheus's own page.
LINKS = {
    "is it learning": 'rollcall_return_mean or rollcall_reward_mean{env!=""}',
    "what limits it": "run:rollcall_learner_busy:ratio5m or run:rollcall_actor_busy:ratio5m",
    "where the tickets are": "rollcall_tickets_acting or rollcall_tickets_queued or rollcall_tickets_training",
    "policy lag": "rollcall_policy_lag_max or rollcall_policy_lag_bound",
}


def main(args: argparse.Namespace) -> int:
    """Exit code 0; with --check 1 where a question fails. `args`: as cli_monitor makes them."""
    runs = args.runs or runs_root()
    if not runs.is_dir():
        raise BadInput(f"RUNS_DIR = {str(runs)!r} (command line): no such directory; give the one that holds the runs")
    settings = Settings(
        runs,
        port=args.port,
        ray_targets=args.ray_targets,
        retention=args.retention,
        every=args.every,
        runbook=args.runbook,
    )
    running = running_at(settings)
    if running is not None:
        return _check(running, args.wait, lambda: True) if args.check else _already(running)
    server = LocalPrometheus(settings)
    with _stop_on_signals() as stop:
        forget_the_dead(settings.runs, first_seen={}, after_s=0.0)
        try:
            server.start()
            _remember(settings, server)
            if args.check:
                return _check(server, args.wait, lambda: not stop.is_set())
            _show(settings, server)
            _watch(settings, server, stop)
        finally:
            server.stop()
            _state_file(settings).unlink(missing_ok=True)
    return 0


def running_at(settings: Settings) -> Prometheus | None:
    """The server of another `rollcall monitor` on the same runs."""
    with suppress(OSError, ValueError, KeyError):
        known = json.loads(_state_file(settings).read_text())
        server = Prometheus(str(known["url"]))
        if server.ready:
            return server
    return None


def forget_the_dead(runs: Path, *, first_seen: dict[Path, float], after_s: float) -> None:
    """Takes away the files of endpoints that nobody answers for, once they have not for so long."""
    now = time.monotonic()
    for path, targets in endpoints(runs / FOLDER):
        if any(answers(target) for target in targets):
            first_seen.pop(path, None)
        elif now - first_seen.setdefault(path, now) >= after_s:
            path.unlink(missing_ok=True)
            first_seen.pop(path)


def alerts_of(server: Prometheus) -> dict[str, dict[str, Any]]:
    """Those that fire, by their labels."""
    found = server.ask("alerts")["alerts"]
    return {json.dumps(alert["labels"], sort_keys=True): alert for alert in found if alert["state"] == "firing"}


def _check(server: Prometheus, wait_s: float, goes_on: Callable[[], bool]) -> int:
    """Asks until nothing fails, or the patience is over: a rate needs two scrapes."""
    deadline = time.monotonic() + wait_s
    while True:
        findings = Check(server).findings()
        failing = [finding for finding in findings if finding.verdict == "fails"]
        if (not failing and _has_data(findings)) or time.monotonic() > deadline or not goes_on():
            break
        time.sleep(min(_SETTLE_S, max(0.0, deadline - time.monotonic())))
    for verdict in ("empty", "fails"):
        for finding in findings:
            if finding.verdict == verdict:
                print(finding)
    empty = sum(finding.verdict == "empty" for finding in findings)
    answered = len(findings) - empty - len(failing)
    counted = f"{answered} answered, {empty} empty for the reason given, {len(failing)} fail"
    print(f"{len(findings)} questions: {counted}", flush=True)
    return 1 if failing else 0


def _has_data(findings: list[Finding]) -> bool:
    return any(finding.verdict == "data" for finding in findings)


def _show(settings: Settings, server: LocalPrometheus) -> None:
    dashboards, provisioning = shipped("grafana", "dashboards"), shipped("grafana", "provisioning")
    print(f"Prometheus: {server.url} (alerts: {server.url}/alerts, targets: {server.url}/targets)")
    for name, expression in LINKS.items():
        query = urllib.parse.urlencode({"g0.expr": expression, "g0.tab": "0", "g0.range_input": "30m"})
        print(f"  {name}: {server.url}/graph?{query}")
    print(f"dashboards: {dashboards}")
    print("  in a Grafana that runs: a Prometheus data source with the URL above; Dashboards, New, Import each")
    print("  or start one with all of it:")
    print(f"  GF_PATHS_PROVISIONING={provisioning} ROLLCALL_DASHBOARDS={dashboards} \\")
    print(f"    ROLLCALL_PROMETHEUS={server.url} grafana server --homepath /usr/share/grafana")
    print(f"watching the runs in {settings.runs}; data and log in {settings.directory}; Ctrl-C ends it", flush=True)


def _already(server: Prometheus) -> int:
    print(f"these runs are watched already, at {server.url} (alerts: {server.url}/alerts)")
    return 0


def _watch(settings: Settings, server: LocalPrometheus, stop: threading.Event) -> None:
    """Alerts come and go as lines, until the end."""
    firing: dict[str, dict[str, Any]] = {}
    first_seen: dict[Path, float] = {}
    while not stop.wait(LOOK_EVERY_S):
        if not server.alive():
            raise RollcallError(f"Prometheus has ended by itself; see {server.log_path}")
        forget_the_dead(settings.runs, first_seen=first_seen, after_s=MOURNED_S)
        try:
            now = alerts_of(server)
        except RollcallError:
            continue  # busy; the next look is soon
        for key in now.keys() - firing.keys():
            told = now[key]["annotations"]
            print(f"{_clock()} firing   {told['summary']}  ({told['runbook_url']})", flush=True)
        for key in firing.keys() - now.keys():
            print(f"{_clock()} resolved {firing[key]['annotations']['summary']}", flush=True)
        firing = now


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _state_file(settings: Settings) -> Path:
    return settings.directory / "monitor.json"


def _remember(settings: Settings, server: LocalPrometheus) -> None:
    _state_file(settings).write_text(json.dumps({"url": server.url, "pid": server.pid}))


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM end the command, and Prometheus with it, in order."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
