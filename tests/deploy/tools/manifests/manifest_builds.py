"""Overlays and the base as objects, for the tests of the manifests: built once, given as copies."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml

from rollcall.deploy.tools.manifests import check as manifests
from rollcall.deploy.tools.manifests.schema import Kinds, read_kinds
from tests import ROOT
from tests.needs import KUBERAY, require

K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("local", "gpu", "autoscale", "kueue", "gcs-ft", "monitoring")
Documents = list[dict[str, Any]]

_built: dict[str, Documents] = {}
_crds: list[Kinds] = []


def base() -> Documents:
    """The base as it is written, without kustomize."""
    if "base" not in _built:
        kustomization = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())
        documents: Documents = []
        for name in kustomization["resources"]:
            documents += yaml.safe_load_all((K8S / "base" / name).read_text())
        for document in documents:
            document["metadata"]["namespace"] = kustomization["namespace"]
        _built["base"] = json.loads(json.dumps(documents))  # two places are never one, as they are by a YAML alias
    return copy.deepcopy(_built["base"])


def built(overlay: str) -> Documents:
    if overlay not in _built:
        documents, warnings = manifests.read(str(K8S / "overlays" / overlay))
        assert not warnings
        _built[overlay] = documents
    return copy.deepcopy(_built[overlay])


def crds() -> Kinds:
    """KubeRay's definitions; skips where they are not at hand."""
    require("kuberay")
    if not _crds:
        _crds.append(read_kinds(KUBERAY))
    return _crds[0]


def of(documents: Documents, kind: str, name: str) -> dict[str, Any]:
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)
