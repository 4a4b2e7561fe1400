"""The Kubernetes manifests: every overlay builds and validates, and a scan that knows nothing of the rules finds
nothing either."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollcall.deploy.tools.manifests import check as manifests
from tests.deploy.tools.manifests.manifest_builds import K8S, OVERLAYS, base, built, crds, of
from tests.needs import needs, require_module

KUBERNETES = "1.32"


def test_nothing_is_wrong_with_the_base() -> None:
    assert manifests.check(base(), {}) == []


@needs("kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_builds_without_a_warning_and_nothing_is_wrong_with_it(overlay: str) -> None:
    assert manifests.check(built(overlay), {}) == []


@needs("kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_objects_are_what_kuberays_definitions_say(overlay: str) -> None:
    assert {document["kind"] for document in built(overlay)} >= {"RayJob", "RayCluster"}
    assert manifests.check(built(overlay), crds()) == []


@needs("kubectl")
def test_kubernetes_own_objects_are_what_its_schemas_say() -> None:
    kubernetes_validate = require_module("kubernetes_validate")

    others = ("ray.io/", "monitoring.coreos.com/", "kueue.x-k8s.io/")
    every = [document for overlay in OVERLAYS for document in built(overlay)]
    # Most objects are the same in all overlays.
    texts = {
        json.dumps(document, sort_keys=True) for document in every if not document["apiVersion"].startswith(others)
    }
    assert len(texts) > 25
    for text in sorted(texts):
        kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)
    typo = of(built("local"), "StatefulSet", "rollcall-redis")
    typo["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessprobe"):
        kubernetes_validate.validate(typo, KUBERNETES, strict=True)


@needs("kubectl")
def test_components_can_be_combined(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s", ignore=shutil.ignore_patterns("overlays", "secrets"))
    own = tmp_path / "k8s" / "overlays" / "own"
    own.mkdir(parents=True)
    names = ["gpu", "autoscale", "gcs-ft"]
    text = {"resources": ["../../base"], "components": [f"../../components/{name}" for name in names]}
    (own / "kustomization.yaml").write_text(yaml.safe_dump(text))
    documents, warnings = manifests.read(str(own))
    assert not warnings and manifests.check(documents, crds()) == []
    cluster = next(document for document in documents if document["kind"] == "RayCluster")["spec"]
    assert cluster["enableInTreeAutoscaling"] and cluster["gcsFaultToleranceOptions"]


# A scan that knows nothing of the rules: whatever is a container, wherever it is.


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk(inner, f"{path}[{index}]")


@needs("kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_scan_finds_no_root_no_capability_no_secret_and_no_open_port(overlay: str) -> None:
    seen = 0
    for document in built(overlay):
        assert document["kind"] not in ("Secret", "Ingress")
        for path, value in walk(document):
            if not isinstance(value, dict):
                continue
            if isinstance(value.get("containers"), list):
                pod = value["securityContext"]
                assert pod["runAsNonRoot"] is True and pod["runAsUser"] > 0, path
                assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, path
                assert not {"hostNetwork", "hostPID", "hostIPC"} & set(value), path
                for container in [*value["containers"], *value.get("initContainers", [])]:
                    seen += 1
                    own = container["securityContext"]
                    assert own["capabilities"] == {"drop": ["ALL"]}, path
                    assert own["allowPrivilegeEscalation"] is False and not own.get("privileged"), path
                    assert "runAsUser" not in own and "runAsNonRoot" not in own, path
                    for entry in container.get("env", []):
                        assert "@" not in entry.get("value", "").partition("rollcall@rollcall-redis")[0], path
            assert "hostPort" not in value and "hostPath" not in value and "nodePort" not in value, path
        if document["kind"] == "NetworkPolicy":
            for rule in document["spec"].get("ingress", []):
                assert rule["from"], document["metadata"]["name"]
                for peer in rule["from"]:
                    assert peer["podSelector"] and "ipBlock" not in peer and peer.get("namespaceSelector") != {}
    assert seen >= 15
    made_by_hand = {"RayCluster", "RayJob", "StatefulSet", "Deployment"}
    assert {document["kind"] for document in built(overlay)} >= made_by_hand
