"""Who may talk to whom: everything is denied first, and what is allowed names its peers, its ports, and pods that
exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rollcall.deploy.tools.manifests.objects import Finding, Object, Objects, Pod, namespace_of, where

EVERYWHERE = ("0.0.0.0/0", "::/0")
API_SERVER_PORTS = {443, 6443}  # the one peer that is no pod, and whose address nobody knows beforehand
OPEN_SERVICES = ("NodePort", "LoadBalancer", "ExternalName")


def check_network(objects: Objects) -> Iterator[Finding]:
    """Every finding about policies, services and other ways in."""
    policies = objects.of("NetworkPolicy")
    for namespace in sorted({pod.namespace for pod in objects.pods}):
        if not any(_denies_all(policy) for policy in policies if namespace_of(policy) == namespace):
            text = f"no NetworkPolicy denies all of {namespace}'s traffic: add one with podSelector {{}} and no rules"
            yield Finding(f"Namespace/{namespace}", text)
    for policy in policies:
        yield from _policy(policy, objects)
    for service in objects.of("Service"):
        spec = service.get("spec") or {}
        if spec.get("type") in OPEN_SERVICES or spec.get("externalIPs"):
            yield Finding(f"{where(service)}: spec.type", "opens it to the outside: leave it at ClusterIP")
    for document in objects.of("Ingress", "Route", "Gateway", "HTTPRoute"):
        yield Finding(where(document), "opens a port to the outside: forward ports instead (kubectl port-forward)")
    for document in objects.of("RayCluster", "RayJob"):
        spec = document.get("spec") or {}
        head = (spec.get("rayClusterSpec") or spec).get("headGroupSpec") or {}
        if head.get("enableIngress") or head.get("serviceType") in OPEN_SERVICES:
            yield Finding(
                f"{where(document)}: headGroupSpec", "opens the head to the outside: whoever reaches it runs code"
            )


def _denies_all(policy: Object) -> bool:
    spec = policy.get("spec") or {}
    both = set(spec.get("policyTypes") or []) == {"Ingress", "Egress"}
    return both and not spec.get("podSelector") and not spec.get("ingress") and not spec.get("egress")


def _policy(policy: Object, objects: Objects) -> Iterator[Finding]:
    spec = policy.get("spec") or {}
    place = f"{where(policy)}: spec"
    pods = objects.matching(spec.get("podSelector") or {}, namespace_of(policy))
    if not pods:
        yield Finding(f"{place}.podSelector", "selects no pod of this build")
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or []):
            at = f"{place}.{direction}[{index}]"
            yield from _peers(rule, side, at, objects, namespace_of(policy))
            if direction == "ingress":
                yield from _ports(rule, at, pods)
        if spec.get(direction) and direction.capitalize() not in (spec.get("policyTypes") or []):
            yield Finding(f"{place}.policyTypes", f"must name {direction.capitalize()}, which the policy has rules for")


def _peers(rule: Object, side: str, at: str, objects: Objects, namespace: str) -> Iterator[Finding]:
    peers = rule.get(side) or []
    if not peers:
        yield Finding(f"{at}.{side}", "is empty: that is everybody, in all namespaces and outside")
    for index, peer in enumerate(peers):
        place = f"{at}.{side}[{index}]"
        elsewhere = peer.get("namespaceSelector")
        if elsewhere is not None and not elsewhere:
            yield Finding(f"{place}.namespaceSelector", "is empty: that is all namespaces; name one")
        if elsewhere and "podSelector" not in peer:
            yield Finding(f"{place}.podSelector", "is missing: that is every pod of the namespace")
        if elsewhere and not rule.get("ports"):
            yield Finding(f"{at}.ports", "are missing: that is every port, for another namespace")
        if (peer.get("ipBlock") or {}).get("cidr") in EVERYWHERE and not _only_api_server(rule, side):
            yield Finding(f"{place}.ipBlock.cidr", "is every address: narrow it")
        if elsewhere is None and "podSelector" in peer and not objects.matching(peer["podSelector"], namespace):
            yield Finding(f"{place}.podSelector", "selects no pod of this build")


def _only_api_server(rule: Object, side: str) -> bool:
    ports = {port.get("port") for port in rule.get("ports") or []}
    return side == "to" and bool(ports) and ports <= API_SERVER_PORTS


def _ports(rule: Object, at: str, pods: list[Pod]) -> Iterator[Finding]:
    """What is opened is what somebody listens on."""
    open_ports: dict[Any, None] = {}
    for pod in pods:
        for name, port in pod.port_names.items():
            open_ports |= {name: None, port: None}
    for index, port in enumerate(rule.get("ports") or []):
        if port.get("port") not in open_ports and pods:
            known = ", ".join(str(name) for name in open_ports if isinstance(name, int)) or "none"
            yield Finding(f"{at}.ports[{index}].port", f"{port.get('port')} is no port of the pods selected: {known}")
