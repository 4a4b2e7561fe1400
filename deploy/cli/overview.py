"""`rollcall runs` and `compare`: what there is, and how runs stand beside each other."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli.commands import DONE, Add
from rollcall.deploy.config.settings import COMMAND_LINE


def add_overview(add: Add) -> None:
    """Adds the commands that look at several runs."""
    runs = add("runs", _runs, "list the runs here: recipe, method, status, score, steps, age, machine")
    runs.add_argument("directories", nargs="*", metavar="RUN", help="these runs alone; default: all under runs/")
    runs.add_argument(
        "--status", metavar="S", help="only those completed, stopped, failed, running, starting or cut off"
    )
    runs.add_argument("--json", action="store_true", help="print a JSON array, with numbers as numbers")
    runs.epilog = (
        "cut off: the driver is gone without a summary, as after kill -9. The score is the mean of the final or newest "
        "evaluation; (training): of a run that was never evaluated"
    )
    compare = add("compare", _compare, "group runs by their settings without the seed, and compare the groups")
    compare.add_argument("directories", nargs="+", metavar="RUN")
    compare.add_argument(
        "--html", type=Path, metavar="FILE", help="the page to write; default: comparison.html beside the first run"
    )
    compare.add_argument("--csv", type=Path, metavar="FILE", help="also write the curves as CSV")
    compare.add_argument("--json", action="store_true", help="print one JSON object, and write no page unless --html")
    compare.add_argument("-q", "--quiet", action="store_true", help="print only the files that were written")
    compare.epilog = "intervals are 95 %% t intervals of the mean over seeds: with one seed there is none"


def _runs(args: argparse.Namespace) -> int:
    from rollcall.deploy.overview.run_table import STATUSES, as_json, read_runs, table_lines
    from rollcall.deploy.rundir.directories import find_run
    from rollcall.deploy.rundir.jobs import runs_root

    if args.status is not None and args.status not in STATUSES:
        raise BadInput(f"--status = {args.status!r} ({COMMAND_LINE}): must be one of {', '.join(STATUSES)}")
    found = read_runs(runs_root(), [find_run(text) for text in args.directories])
    found = [run for run in found if args.status in (None, run.status)]
    if args.json:
        print(json.dumps([as_json(run) for run in found], indent=1))
    elif found:
        print("\n".join(table_lines(found)))
    else:
        print(f"{runs_root()}/ holds no run{f' that is {args.status}' if args.status else ' yet'}")
    return DONE


def _compare(args: argparse.Namespace) -> int:
    from rollcall.deploy.overview.comparison import as_json, as_lines, compare
    from rollcall.deploy.overview.comparison_files import write_csv, write_page
    from rollcall.deploy.rundir.directories import find_run

    directories = [find_run(text) for text in args.directories]
    found = compare(directories)
    written = []
    if args.html is not None or not args.json:
        written.append(write_page(found, args.html or directories[0].parent / "comparison.html"))
    if args.csv is not None:
        written.append(write_csv(found, args.csv))
    if args.json:
        print(json.dumps(as_json(found) | {"files": [str(path) for path in written]}, indent=1))
        return DONE
    if not args.quiet:
        print("\n".join(as_lines(found)))
    for path in written:
        print(path)
    return DONE
