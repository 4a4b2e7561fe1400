"""The command line of `rollcall manifests`. Imports nothing heavy: what does it is imported when it is called."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_manifests(manifests: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rollcall manifests`."""
    manifests.set_defaults(run=_run)
    manifests.add_argument(
        "overlay", metavar="OVERLAY", help="a folder with a kustomization, a YAML file, or - for standard input"
    )
    manifests.add_argument(
        "--crds", type=Path, metavar="FOLDER", help="with KubeRay's definitions, for its objects' fields"
    )


def _run(args: argparse.Namespace) -> int:
    from rollcall.deploy.tools.manifests.check import main

    return main(args)
