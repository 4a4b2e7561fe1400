"""Checks Kubernetes manifests before a cluster has to: builds an overlay, and names every place in it that is wrong.
`rollcall manifests OVERLAY [--crds FOLDER]`. Talks to no cluster, and changes nothing."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rollcall.cluster.errors import BadInput
from rollcall.deploy.tools.manifests.kinds import KINDS
from rollcall.deploy.tools.manifests.network import check_network
from rollcall.deploy.tools.manifests.objects import Finding, Objects
from rollcall.deploy.tools.manifests.pods import check_pods
from rollcall.deploy.tools.manifests.ray import check_ray
from rollcall.deploy.tools.manifests.references import check_references
from rollcall.deploy.tools.manifests.schema import Kinds, check_schema, read_kinds, read_yaml

BUILD_TIMEOUT_S = 60.0
RULES: Sequence[Callable[[Objects], Iterator[Finding]]] = (check_pods, check_network, check_references, check_ray)


def main(args: argparse.Namespace) -> int:
    """Exit code 0: nothing found. 1: each finding on a line. `args`: as cli_manifests makes them.

    Raises:
      BadInput: when there is nothing to check.
    """
    documents, warnings = read(args.overlay)
    findings = [*warnings, *check(documents, read_kinds(args.crds) if args.crds is not None else {})]
    for finding in findings:
        print(finding)
    unchecked = "" if args.crds is not None else "; fields of Ray's objects were not looked at: give --crds"
    print(f"{len(documents)} objects, {len(findings) or 'no'} findings{unchecked}", file=sys.stderr)
    return 1 if findings else 0


def check(documents: Sequence[Any], crds: Kinds) -> list[Finding]:
    """Everything that is wrong. A field of the wrong kind is found by the schemas; the rules then look no further."""
    broken = [
        Finding("document", f"{document!r:.60} is no object") for document in documents if not _is_object(document)
    ]
    objects = Objects([document for document in documents if _is_object(document)])
    kinds = {**KINDS, **crds}
    found = broken + [finding for document in objects for finding in check_schema(document, kinds)]
    for rule in RULES:
        try:
            found += rule(objects)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if not found:  # no schema has said where: say at least what
                found.append(Finding(rule.__name__, f"a field is not of the kind that it must be: {error!r}"))
    return list(dict.fromkeys(found))


def read(overlay: str) -> tuple[list[Any], list[Finding]]:
    """The objects of an overlay or a file, and what kustomize warned of.

    Raises:
      BadInput: they cannot be built or read.
    """
    path = Path(overlay)
    warnings: list[Finding] = []
    if overlay == "-":
        text = sys.stdin.read()
    elif path.is_dir():
        text, warned = build(path)
        warnings = [Finding(overlay, line) for line in warned.splitlines() if line.strip()]
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(
                f"cannot read {overlay}: {error}; give a folder with a kustomization, or a YAML file"
            ) from None
    try:
        documents = [document for document in read_yaml(text) if document is not None]
    except yaml.YAMLError as error:
        raise BadInput(f"{overlay} is no YAML: {' '.join(str(error).split())}") from None
    if not documents:
        raise BadInput(f"{overlay} holds no objects")
    return documents, warnings


def build(folder: Path) -> tuple[str, str]:
    """What kustomize makes of a folder, and what it says on the way.

    Raises:
      BadInput: there is no kustomize, or it refuses.
    """
    command = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    if shutil.which(command[0]) is None:
        raise BadInput("neither kubectl nor kustomize is on PATH: install one of them, or give what it built as a file")
    try:
        done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BadInput(f"{' '.join(command)} {folder} did not end within {BUILD_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        raise BadInput(f"{' '.join(command)} {folder}: {' '.join(done.stderr.split())}")
    return done.stdout, done.stderr


def _is_object(document: Any) -> bool:
    return isinstance(document, dict) and "kind" in document and isinstance(document.get("metadata"), dict)
