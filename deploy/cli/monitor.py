"""The command line of `rollcall monitor`. Imports nothing heavy: what does it is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_monitor(monitor: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rollcall monitor`."""
    monitor.set_defaults(run=_run)
    where = "the directory that holds the runs; default: runs/, or $ROLLCALL_RUNS"
    monitor.add_argument("runs", nargs="?", type=Path, metavar="RUNS_DIR", help=where)
    monitor.add_argument("--port", type=int, metavar="N", help="of Prometheus; default: 9090, or a free one")
    monitor.add_argument(
        "--ray-targets",
        type=Path,
        default=Path("/tmp/ray/prom_metrics_service_discovery.json"),
        metavar="FILE",
        help="where the head of a Ray cluster lists its nodes; default: %(default)s",
    )
    monitor.add_argument("--every", default="5s", metavar="TIME", help="how often everything is scraped; default: 5s")
    monitor.add_argument("--retention", default="15d", metavar="TIME", help="how long data are kept; default: 15d")
    monitor.add_argument(
        "--runbook", default="docs/runbook.md", metavar="URL", help="the page that alerts link to; default: %(default)s"
    )
    monitor.add_argument(
        "--check",
        action="store_true",
        help="ask every question of every dashboard and rule, say which have no answer and why, and end",
    )
    monitor.add_argument(
        "--wait", type=float, default=60.0, metavar="S", help="how long --check waits for data; default: 60"
    )


def _run(args: argparse.Namespace) -> int:
    from rollcall.deploy.tools.monitoring.monitor import main

    return main(args)
