"""`rollcall doctor`: what this machine has of what runs need."""

from __future__ import annotations

import argparse
import json

from rollcall.deploy.cli.commands import DONE, FAILED, Add


def add_doctor(add: Add) -> None:
    """Adds the command."""
    doctor = add("doctor", _doctor, "look at this machine: what runs need of it, what is there, and what that means")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument("-q", "--quiet", action="store_true", help="print problems alone")
    doctor.epilog = "takes a second or two, 10 at the most; exit code 1: runs as they are shipped do not work here"


def _doctor(args: argparse.Namespace) -> int:
    from rollcall.deploy.tools.doctor.findings import as_json, as_lines, findings
    from rollcall.deploy.tools.doctor.probes import probes

    found = findings(probes())
    problems = [finding for finding in found if finding.level == "problem"]
    if args.json:
        print(json.dumps(as_json(found), indent=1))
    elif not args.quiet:
        print("\n".join(as_lines(found)))
    elif problems:
        print("\n".join(as_lines(problems)))
    return FAILED if problems else DONE
