"""Kubernetes objects as they were built, and the pods that they lead to, among them those that KubeRay makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Object = Mapping[str, Any]
TEMPLATED = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")


@dataclass(frozen=True)
class Finding:
    """What is wrong, and where: an object, and the path of a field in it."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class Container:
    """Of a pod, or what KubeRay puts beside one: the autoscaler."""

    where: str
    spec: Object

    @property
    def env(self) -> dict[str, Any]:
        """Values by name; None for one that comes from somewhere else."""
        return {str(entry.get("name")): entry.get("value") for entry in self.spec.get("env") or []}

    @property
    def ports(self) -> dict[str, int]:
        return {str(port.get("name")): int(port.get("containerPort", 0)) for port in self.spec.get("ports") or []}


@dataclass(frozen=True)
class Pod:
    """A pod as its owner describes it, with the labels that it will have."""

    where: str  # of the template
    kind: str  # of the owner
    name: str  # of the owner
    namespace: str
    labels: Mapping[str, str]
    spec: Object
    role: str = ""  # in Ray: head, worker, submitter
    extra: tuple[Container, ...] = ()
    claims: tuple[str, ...] = ()  # volumes that a StatefulSet claims for each of its pods
    params: Mapping[str, Any] = field(default_factory=dict)  # of `ray start`

    @cached_property
    def containers(self) -> list[Container]:
        """All of them, in order: the first is Ray's in a pod of KubeRay's."""
        found = [
            Container(f"{self.where}.spec.{part}[{index}]", container)
            for part in ("containers", "initContainers")
            for index, container in enumerate(self.spec.get(part) or [])
        ]
        return [*found, *self.extra]

    @property
    def port_names(self) -> dict[str, int]:
        return {name: port for container in self.containers for name, port in container.ports.items()}


class Objects:
    """All objects of one build."""

    def __init__(self, documents: Sequence[Object]) -> None:
        self.all = [document for document in documents if document]

    def __iter__(self) -> Iterator[Object]:
        return iter(self.all)

    def of(self, *kinds: str) -> list[Object]:
        return [document for document in self.all if document.get("kind") in kinds]

    def has(self, kind: str, name: str) -> bool:
        return any(name_of(document) == name for document in self.of(kind))

    @cached_property
    def pods(self) -> list[Pod]:
        return [pod for document in self.all for pod in _pods(document)]

    def matching(self, selector: Object | None, namespace: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.namespace == namespace and selects(selector, pod.labels)]


def name_of(document: Object) -> str:
    return str((document.get("metadata") or {}).get("name", ""))


def namespace_of(document: Object) -> str:
    return str((document.get("metadata") or {}).get("namespace", "default"))


def where(document: Object) -> str:
    """How an object is called in a finding."""
    return f"{document.get('kind', '?')}/{name_of(document) or '?'}"


def selects(selector: Object | None, labels: Mapping[str, str]) -> bool:
    """A label selector's own rules; an empty one selects everything, none selects nothing."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for part in selector.get("matchExpressions") or []:
        value, among = labels.get(part.get("key", "")), part.get("values") or []
        holds = {
            "In": value in among,
            "NotIn": value not in among,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds.get(part.get("operator", ""), False):
            return False
    return True


def ray_spec(document: Object) -> tuple[str, Object] | None:
    """The Ray cluster that an object describes, with the path to it."""
    spec = document.get("spec") or {}
    if document.get("kind") == "RayCluster":
        return f"{where(document)}: spec", spec
    if document.get("kind") == "RayJob" and spec.get("rayClusterSpec"):
        return f"{where(document)}: spec.rayClusterSpec", spec["rayClusterSpec"]
    return None


def _pods(document: Object) -> Iterator[Pod]:
    kind, name, namespace = str(document.get("kind")), name_of(document), namespace_of(document)
    spec = document.get("spec") or {}

    def pod(place: str, template: Object, role: str = "", **more: Any) -> Pod:
        labels = (template.get("metadata") or {}).get("labels") or {}
        own = {str(key): str(value) for key, value in {**labels, **more.pop("labels", {})}.items()}
        return Pod(place, kind, name, namespace, own, template.get("spec") or {}, role, **more)

    if kind in TEMPLATED and spec.get("template"):
        claims = tuple(name_of(claim) for claim in spec.get("volumeClaimTemplates") or [])
        yield pod(f"{where(document)}: spec.template", spec["template"], claims=claims)
    if kind == "CronJob" and (jobs := (spec.get("jobTemplate") or {}).get("spec") or {}).get("template"):
        yield pod(f"{where(document)}: spec.jobTemplate.spec.template", jobs["template"])
    if kind == "RayJob" and spec.get("submitterPodTemplate"):
        yield pod(f"{where(document)}: spec.submitterPodTemplate", spec["submitterPodTemplate"], "submitter")
    if (found := ray_spec(document)) is not None:
        place, cluster = found
        head = cluster.get("headGroupSpec") or {}
        labels = {**(head.get("labels") or {}), "ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}
        options = cluster.get("autoscalerOptions")
        extra = () if options is None else (Container(f"{place}.autoscalerOptions", options),)
        params = head.get("rayStartParams") or {}
        at, template = f"{place}.headGroupSpec.template", head.get("template") or {}
        yield pod(at, template, "head", labels=labels, extra=extra, params=params)
        for index, group in enumerate(cluster.get("workerGroupSpecs") or []):
            labels = {**(group.get("labels") or {}), "ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"}
            labels["ray.io/group"] = str(group.get("groupName"))
            params = group.get("rayStartParams") or {}
            at, template = f"{place}.workerGroupSpecs[{index}].template", group.get("template") or {}
            yield pod(at, template, "worker", labels=labels, params=params)
