"""What every pod must be: nobody's root, without capabilities, with requests and limits, with an image that is one
image, with time to end, and with no secret in clear."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rollcall.deploy.tools.manifests.objects import Container, Finding, Object, Objects, Pod, where

MIN_GRACE_S = 60
HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")
VOLUME_SOURCES = ("configMap", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret", "downwardAPI")
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SECRET_NAME = re.compile(r"(TOKEN(?!IZER)|PASSWORD|PASSWD|SECRET|API_?KEY|CREDENTIAL)(?!_(FILE|PATH))", re.IGNORECASE)
_SECRET_TEXT = (
    (re.compile(r"\w+://[^/\s:@]*:[^/\s@]+@"), "an address with a password in it"),
    (re.compile(r"^\s*(requirepass|masterauth)\s+\S", re.MULTILINE), "a password of Redis"),
    (re.compile(r"^\s*user\s+\S+.*\s>\S", re.MULTILINE), "a password of a Redis user"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
    (
        re.compile(r"^\s*[\w.-]*(password|token|secret)\s*[:=]\s*[\"']?[^\s\"'/$#{]{6,}", re.I | re.MULTILINE),
        "a secret",
    ),
    (
        re.compile(r"(?<![\w/+=:-])(?=[A-Za-z0-9+]*\d)(?=[A-Za-z0-9+]*[A-Za-z])[A-Za-z0-9+]{32,}={0,2}(?![\w/+=-])"),
        "a key",
    ),
)


def check_pods(objects: Objects) -> Iterator[Finding]:
    """Every finding about pods, and about secrets wherever they are."""
    for pod in objects.pods:
        yield from _host(pod)
        yield from _volumes(pod)
        yield from _grace(pod)
        yield from _token(pod, objects)
        for container in pod.containers:
            yield from _security(pod, container)
            yield from _resources(container)
            if container not in pod.extra:  # KubeRay fills in its own
                yield from _image(container)
        if pod.kind in ("Deployment", "StatefulSet"):
            yield from _probes(pod)
    for document in objects:
        yield from _secrets(document)


def quantity(value: Any) -> float:
    """Of bytes or cores: "512Mi", "500m", 2. Raises ValueError: it is none."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is no quantity such as 500m or 2Gi")
    return float(match[1]) * _UNITS[match[2]]


def _host(pod: Pod) -> Iterator[Finding]:
    for field in HOST_FIELDS:
        if pod.spec.get(field):
            yield Finding(f"{pod.where}.spec.{field}", "must not be true: the pod would share the node's own")
    for container in pod.containers:
        for index, port in enumerate(container.spec.get("ports") or []):
            if port.get("hostPort"):
                yield Finding(f"{container.where}.ports[{index}].hostPort", "must not be set: it opens the node's port")


def _security(pod: Pod, container: Container) -> Iterator[Finding]:
    of_pod = pod.spec.get("securityContext") or {}
    own = container.spec.get("securityContext") or {}
    place = f"{container.where}.securityContext"
    if own.get("privileged"):
        yield Finding(f"{place}.privileged", "must not be true: the container could do anything to its node")
    if own.get("allowPrivilegeEscalation") is not False:
        yield Finding(f"{place}.allowPrivilegeEscalation", "must be false")
    if own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
        yield Finding(f"{place}.runAsNonRoot", "must be true, here or for the pod")
    if own.get("runAsUser", of_pod.get("runAsUser")) in (None, 0):
        yield Finding(f"{place}.runAsUser", "must be a user other than root (0), here or for the pod")
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield Finding(f"{place}.capabilities.drop", "must be [ALL]")
    if capabilities.get("add"):
        yield Finding(f"{place}.capabilities.add", f"must be empty, not {capabilities['add']}")
    profile = (own.get("seccompProfile") or of_pod.get("seccompProfile") or {}).get("type")
    if profile not in ("RuntimeDefault", "Localhost"):
        yield Finding(f"{place}.seccompProfile.type", "must be RuntimeDefault, here or for the pod")
    if own.get("readOnlyRootFilesystem") is not True:
        yield Finding(f"{place}.readOnlyRootFilesystem", "must be true: give it emptyDirs where it writes")


def _resources(container: Container) -> Iterator[Finding]:
    resources = container.spec.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name in ("cpu", "memory"):
        missing = [side for side, given in (("requests", requests), ("limits", limits)) if name not in given]
        for side in missing:
            yield Finding(f"{container.where}.resources.{side}.{name}", "is missing")
    for name in set(requests) & set(limits):
        try:
            if quantity(requests[name]) > quantity(limits[name]):
                text = f"{requests[name]} is more than the limit, {limits[name]}"
                yield Finding(f"{container.where}.resources.requests.{name}", text)
        except ValueError as error:
            yield Finding(f"{container.where}.resources.{name}", str(error))


def _image(container: Container) -> Iterator[Finding]:
    image = str(container.spec.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    if not image:
        yield Finding(f"{container.where}.image", "is missing")
    elif "@sha256:" not in image and (not tag or tag in ("latest", "main", "master", "nightly")):
        yield Finding(f"{container.where}.image", f"{image}: name one image, by an exact tag or digest")


def _probes(pod: Pod) -> Iterator[Finding]:
    for container in pod.containers:
        for probe in ("readinessProbe", "livenessProbe"):
            if probe not in container.spec and ".initContainers" not in container.where:
                yield Finding(f"{container.where}.{probe}", "is missing")


def _grace(pod: Pod) -> Iterator[Finding]:
    if pod.kind in ("Job", "CronJob") or pod.role == "submitter":  # these keep nothing that an end could lose
        return
    grace_s = int(pod.spec.get("terminationGracePeriodSeconds", 30))
    place = f"{pod.where}.spec.terminationGracePeriodSeconds"
    if grace_s < MIN_GRACE_S:
        yield Finding(place, f"{grace_s} s is too short: at least {MIN_GRACE_S}, for a last checkpoint or a drain")
    for container in pod.containers:
        hook = ((container.spec.get("lifecycle") or {}).get("preStop") or {}).get("exec") or {}
        waits_s = max((float(word) for word in hook.get("command") or [] if re.fullmatch(r"[0-9.]+", word)), default=0)
        if waits_s >= grace_s:
            yield Finding(place, f"{grace_s} s end before the preStop hook of {waits_s:g} s does")


def _token(pod: Pod, objects: Objects) -> Iterator[Finding]:
    """The API server's token only where a role says what it is for."""
    account = pod.spec.get("serviceAccountName", "default")
    subjects = [subject.get("name") for bound in objects.of("RoleBinding") for subject in bound.get("subjects") or []]
    if pod.spec.get("automountServiceAccountToken") is not False and account not in subjects:
        text = f"must be false: nothing says what {account} may do, so the pod needs no token"
        yield Finding(f"{pod.where}.spec.automountServiceAccountToken", text)


def _volumes(pod: Pod) -> Iterator[Finding]:
    names: list[str] = []
    for index, volume in enumerate(pod.spec.get("volumes") or []):
        place = f"{pod.where}.spec.volumes[{index}]"
        names.append(str(volume.get("name")))
        source = next((key for key in volume if key != "name"), "nothing")
        if source not in VOLUME_SOURCES:
            yield Finding(
                f"{place}.{source}", f"is not allowed for restricted pods: use one of {', '.join(VOLUME_SOURCES)}"
            )
        if int((volume.get("secret") or {}).get("defaultMode", 0o644)) & 0o007 and source == "secret":
            yield Finding(
                f"{place}.secret.defaultMode", "others may read it: 288 (octal 0440) is for the pod's group alone"
            )
    mounted = {mount.get("name") for container in pod.containers for mount in container.spec.get("volumeMounts") or []}
    for container in pod.containers:
        for index, mount in enumerate(container.spec.get("volumeMounts") or []):
            if mount.get("name") not in (*names, *pod.claims):
                text = f"{mount.get('name')!r} is no volume of the pod: it has {', '.join(names) or 'none'}"
                yield Finding(f"{container.where}.volumeMounts[{index}].name", text)
    for index, name in enumerate(names):
        if name not in mounted:
            yield Finding(f"{pod.where}.spec.volumes[{index}]", f"{name!r} is mounted nowhere")


def _secrets(document: Object) -> Iterator[Finding]:
    if document.get("kind") == "Secret":
        yield Finding(where(document), "a secret must not be part of a build: make it from files, deploy/k8s/secrets")
        return
    for path, value in _texts({key: document[key] for key in document if key not in ("kind", "apiVersion")}):
        for pattern, what in _SECRET_TEXT:
            if pattern.search(value) and not value.startswith("/"):
                yield Finding(f"{where(document)}: {path}", f"holds {what} in clear: give it as a file from a Secret")
                break
    for place, entry in _entries(document, ""):
        if _SECRET_NAME.search(str(entry.get("name", ""))) and str(entry.get("value") or ""):
            text = f"{entry['name']} is given in clear: valueFrom.secretKeyRef, or a file from a Secret"
            yield Finding(f"{where(document)}: {place}", text)


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in it, by its path; expressions of rules and pages for people are left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("expr", "annotations", "description"):
                yield from _texts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{index}]")
    elif isinstance(value, str) and not path.endswith(".json"):
        yield path, value


def _entries(value: Any, path: str) -> Iterator[tuple[str, Object]]:
    """Every entry of an env, and what KubeRay makes one of: {name, value} and gcsFaultToleranceOptions."""
    if isinstance(value, dict):
        for key, inner in value.items():
            place = f"{path}.{key}" if path else str(key)
            if key == "env" and isinstance(inner, list):
                yield from ((f"{place}[{index}]", entry) for index, entry in enumerate(inner))
            elif key in ("redisPassword", "redis-password"):
                given = inner.get("value") if isinstance(inner, dict) else inner
                yield place, {"name": key, "value": given}
            else:
                yield from _entries(inner, place)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _entries(inner, f"{path}[{index}]")
