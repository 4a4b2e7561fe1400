"""Whether what objects name is there: secrets and their keys, settings, claims, accounts, ports, queues, selectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rollcall.deploy.tools.manifests.objects import Finding, Object, Objects, Pod, name_of, namespace_of, selects, where

# Made by the user, from files: deploy/k8s/secrets. Name -> keys.
USER_SECRETS: Mapping[str, Sequence[str]] = {
    "rollcall-ray-token": ("auth_token",),
    "rollcall-reward-token": ("token",),
    "rollcall-redis-password": ("password",),
    "rollcall-gcs-password": ("password",),
    "rollcall-redis-users": ("users.acl",),
}
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def check_references(objects: Objects) -> Iterator[Finding]:
    """Every name that leads nowhere."""
    for (kind, name, namespace), times in Counter(
        (d.get("kind"), name_of(d), namespace_of(d)) for d in objects
    ).items():
        if times > 1:
            yield Finding(f"{kind}/{name}", f"is there {times} times in namespace {namespace}")
    for pod in objects.pods:
        yield from _pod(pod, objects)
    for document in objects:
        yield from _keys(document, objects)
        yield from _queue(document, objects)
    for service in objects.of("Service"):
        yield from _service(service, objects)
    yield from _scaling(objects)
    yield from _monitors(objects)
    yield from _roles(objects)


def _missing(kind: str, name: str, objects: Objects) -> str | None:
    if objects.has(kind, name) or (kind == "Secret" and name in USER_SECRETS):
        return None
    known = [name_of(document) for document in objects.of(kind)] + (sorted(USER_SECRETS) if kind == "Secret" else [])
    return f"no {kind} {name!r}: there are {', '.join(known) or 'none'}"


def _pod(pod: Pod, objects: Objects) -> Iterator[Finding]:
    account = pod.spec.get("serviceAccountName")
    if account is not None and (text := _missing("ServiceAccount", account, objects)):
        yield Finding(f"{pod.where}.spec.serviceAccountName", text)
    sources = (
        ("secret", "secretName", "Secret"),
        ("configMap", "name", "ConfigMap"),
        ("persistentVolumeClaim", "claimName", "PersistentVolumeClaim"),
    )
    for index, volume in enumerate(pod.spec.get("volumes") or []):
        for source, field, kind in sources:
            name = (volume.get(source) or {}).get(field)
            if name is not None and (text := _missing(kind, name, objects)):
                yield Finding(f"{pod.where}.spec.volumes[{index}].{source}.{field}", text)
    for container in pod.containers:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container.spec.get(probe) or {}
            port = (asked.get("httpGet") or asked.get("tcpSocket") or {}).get("port")
            if port is not None and port not in (*container.ports, *container.ports.values()):
                yield Finding(f"{container.where}.{probe}", f"{port!r} is no port of the container")


def _keys(document: Object, objects: Objects) -> Iterator[Finding]:
    """secretKeyRef and configMapKeyRef, wherever they are, and KubeRay's secretName."""
    for place, field, given in _references(document, ""):
        kind = "ConfigMap" if field == "configMapKeyRef" else "Secret"
        name, key = str(given.get("name", "")), given.get("key")
        if text := _missing(kind, name, objects):
            yield Finding(f"{where(document)}: {place}", text)
        elif kind == "Secret" and name in USER_SECRETS and key not in USER_SECRETS[name]:
            yield Finding(f"{where(document)}: {place}", f"{name} has no key {key!r}: {', '.join(USER_SECRETS[name])}")


def _references(value: Any, path: str) -> Iterator[tuple[str, str, Object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            place = f"{path}.{key}" if path else str(key)
            if key in ("secretKeyRef", "configMapKeyRef"):
                yield place, key, inner
            elif key == "authOptions" and isinstance(inner, dict) and inner.get("secretName"):
                yield f"{place}.secretName", key, {"name": inner["secretName"], "key": "auth_token"}
            else:
                yield from _references(inner, place)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _references(inner, f"{path}[{index}]")


def _service(service: Object, objects: Objects) -> Iterator[Finding]:
    spec = service.get("spec") or {}
    pods = objects.matching({"matchLabels": spec.get("selector") or {}}, namespace_of(service))
    if not pods:
        yield Finding(f"{where(service)}: spec.selector", "selects no pod of this build")
        return
    names = {name: port for pod in pods for name, port in pod.port_names.items()}
    for index, port in enumerate(spec.get("ports") or []):
        target = port.get("targetPort", port.get("port"))
        if target not in (*names, *names.values()):
            text = f"{target!r} is no port of the pods selected: {', '.join(names)}"
            yield Finding(f"{where(service)}: spec.ports[{index}].targetPort", text)


def _scaling(objects: Objects) -> Iterator[Finding]:
    for document in objects.of("Deployment", "StatefulSet", "DaemonSet"):
        spec = document.get("spec") or {}
        labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
        if not selects(spec.get("selector"), labels):
            yield Finding(f"{where(document)}: spec.selector", "does not match the labels of its own pods")
    for scaler in objects.of("HorizontalPodAutoscaler"):
        spec = scaler.get("spec") or {}
        target = spec.get("scaleTargetRef") or {}
        if text := _missing(str(target.get("kind")), str(target.get("name")), objects):
            yield Finding(f"{where(scaler)}: spec.scaleTargetRef", text)
        if int(spec.get("minReplicas", 1)) > int(spec.get("maxReplicas", 0)):
            yield Finding(f"{where(scaler)}: spec.minReplicas", "is more than maxReplicas")
        for document in objects.of(str(target.get("kind"))):
            if name_of(document) == target.get("name") and "replicas" in (document.get("spec") or {}):
                yield Finding(
                    f"{where(document)}: spec.replicas",
                    "leave it out: an autoscaler decides, and each apply would undo it",
                )
    for budget in objects.of("PodDisruptionBudget"):
        if not objects.matching((budget.get("spec") or {}).get("selector"), namespace_of(budget)):
            yield Finding(f"{where(budget)}: spec.selector", "selects no pod of this build")


def _monitors(objects: Objects) -> Iterator[Finding]:
    """What Prometheus is told to scrape has the port that it is told."""
    for monitor in objects.of("PodMonitor", "ServiceMonitor"):
        spec = monitor.get("spec") or {}
        if monitor.get("kind") == "PodMonitor":
            field, pods = "podMetricsEndpoints", objects.matching(spec.get("selector"), namespace_of(monitor))
            ports = [set(pod.port_names) for pod in pods]
        else:
            services = [
                s for s in objects.of("Service") if selects(spec.get("selector"), s["metadata"].get("labels") or {})
            ]
            field, ports = "endpoints", [{str(p.get("name")) for p in s["spec"].get("ports") or []} for s in services]
        if not ports:
            yield Finding(f"{where(monitor)}: spec.selector", "selects nothing of this build")
        for index, endpoint in enumerate(spec.get(field) or []):
            if ports and not all(endpoint.get("port") in names for names in ports):
                known = ", ".join(sorted(set.intersection(*ports)))
                text = f"{endpoint.get('port')!r} is not a port of all that is selected: {known or 'none'} is"
                yield Finding(f"{where(monitor)}: spec.{field}[{index}].port", text)


def _roles(objects: Objects) -> Iterator[Finding]:
    for bound in objects.of("RoleBinding", "ClusterRoleBinding"):
        role = bound.get("roleRef") or {}
        if text := _missing(str(role.get("kind")), str(role.get("name")), objects):
            yield Finding(f"{where(bound)}: roleRef", text)
        for index, subject in enumerate(bound.get("subjects") or []):
            if text := _missing("ServiceAccount", str(subject.get("name")), objects):
                yield Finding(f"{where(bound)}: subjects[{index}]", text)
    for role in objects.of("Role", "ClusterRole"):
        for index, rule in enumerate(role.get("rules") or []):
            for field in ("apiGroups", "resources", "verbs"):
                if "*" in (rule.get(field) or []):
                    yield Finding(f"{where(role)}: rules[{index}].{field}", "'*' is everything: name what is needed")
            if "secrets" in (rule.get("resources") or []):
                yield Finding(f"{where(role)}: rules[{index}].resources", "no role here may read secrets")


def _queue(document: Object, objects: Objects) -> Iterator[Finding]:
    queue = ((document.get("metadata") or {}).get("labels") or {}).get(QUEUE_LABEL)
    if queue is not None and (text := _missing("LocalQueue", queue, objects)):
        yield Finding(f"{where(document)}: metadata.labels", text)
    if document.get("kind") == "LocalQueue":
        name = str((document.get("spec") or {}).get("clusterQueue"))
        if text := _missing("ClusterQueue", name, objects):
            yield Finding(f"{where(document)}: spec.clusterQueue", text)
    if document.get("kind") == "ClusterQueue":
        for index, group in enumerate((document.get("spec") or {}).get("resourceGroups") or []):
            for flavor in group.get("flavors") or []:
                if text := _missing("ResourceFlavor", str(flavor.get("name")), objects):
                    yield Finding(f"{where(document)}: spec.resourceGroups[{index}].flavors", text)
                if [r.get("name") for r in flavor.get("resources") or []] != group.get("coveredResources"):
                    text = "must give a quota for each of coveredResources, in their order"
                    yield Finding(f"{where(document)}: spec.resourceGroups[{index}].flavors", text)
