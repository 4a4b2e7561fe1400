"""What KubeRay and Rollcall ask of a Ray cluster: names that fit, authentication, a head without work, groups that can
be scaled, shared memory, and room to stop. Says before a cluster does."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from rollcall.deploy.tools.manifests.objects import Container, Finding, Object, Objects, Pod, name_of, ray_spec, where
from rollcall.deploy.tools.manifests.pods import quantity

# KubeRay makes names of services and pods from them, and a job's cluster gets six characters more.
MAX_NAME = {"RayJob": 47, "RayCluster": 53}
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
GROUP_LABEL = "rollcall"  # of Ray nodes: which role they are for
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


def check_ray(objects: Objects) -> Iterator[Finding]:
    """Every finding about RayClusters and RayJobs."""
    for document in objects.of("RayCluster", "RayJob"):
        yield from _name(document)
        found = ray_spec(document)
        if found is None:
            yield Finding(f"{where(document)}: spec.rayClusterSpec", "is missing")
            continue
        place, cluster = found
        yield from _authentication(place, cluster)
        yield from _head(place, cluster)
        yield from _groups(place, cluster)
        yield from _autoscaling(document, place, cluster, objects)
        yield from _fault_tolerance(place, cluster)
        if document.get("kind") == "RayJob":
            yield from _job(document, cluster)
    for pod in objects.pods:
        if pod.role:
            yield from _environment(pod)
        if pod.role in ("head", "worker"):
            yield from _memory(pod)


def _name(document: Object) -> Iterator[Finding]:
    name, most = name_of(document), MAX_NAME[str(document["kind"])]
    if len(name) > most:
        text = f"{name!r} has {len(name)} characters, at most {most} fit: KubeRay adds to it"
        yield Finding(f"{where(document)}: metadata.name", text)
    if not NAME.fullmatch(name):
        text = f"{name!r} must be small letters, digits and '-', begin with a letter and end with none of '-'"
        yield Finding(f"{where(document)}: metadata.name", text)


def _authentication(place: str, cluster: Object) -> Iterator[Finding]:
    options = cluster.get("authOptions") or {}
    if options.get("mode") != "token":
        yield Finding(
            f"{place}.authOptions.mode", "must be token: whoever reaches a Ray head without one runs code there"
        )
    elif not options.get("secretName"):
        text = "is missing: without it every cluster has another token, and a retry makes a new cluster"
        yield Finding(f"{place}.authOptions.secretName", text)
    version = str(cluster.get("rayVersion", ""))
    installed = metadata.version("ray")
    if version != installed:
        text = f"{version or 'nothing'} is not the images' Ray, {installed}: KubeRay chooses probes and tokens by it"
        yield Finding(f"{place}.rayVersion", text)


def _environment(pod: Pod) -> Iterator[Finding]:
    for container in (*pod.containers[:1], *pod.extra):
        env = container.env
        if env.get("RAY_AUTH_MODE") != "token":
            yield Finding(f"{container.where}.env", "RAY_AUTH_MODE must be token, and be said")
        if env.get("RAY_USAGE_STATS_ENABLED") != "0":
            yield Finding(f"{container.where}.env", 'RAY_USAGE_STATS_ENABLED must be "0"')
        wait = env.get("RAY_JOB_STOP_WAIT_TIME_S")
        grace_s = float(pod.spec.get("terminationGracePeriodSeconds", 30))
        if wait is not None and float(wait) >= grace_s:
            text = f"RAY_JOB_STOP_WAIT_TIME_S is {wait}: longer than the pod's {grace_s:g} s to end"
            yield Finding(f"{container.where}.env", text)


def _head(place: str, cluster: Object) -> Iterator[Finding]:
    params = (cluster.get("headGroupSpec") or {}).get("rayStartParams") or {}
    at = f"{place}.headGroupSpec.rayStartParams"
    if params.get("num-cpus") != "0":
        yield Finding(f"{at}.num-cpus", 'must be "0": work on the head takes the whole cluster down with it')
    for name in ("redis-password", "redis-username", "labels"):
        if name in params:
            remedy = "headGroupSpec.labels" if name == "labels" else "gcsFaultToleranceOptions"
            yield Finding(f"{at}.{name}", f"is not for rayStartParams: use {remedy}")


def _groups(place: str, cluster: Object) -> Iterator[Finding]:
    names: list[str] = []
    for index, group in enumerate(cluster.get("workerGroupSpecs") or []):
        at, name = f"{place}.workerGroupSpecs[{index}]", str(group.get("groupName"))
        if name in names:
            yield Finding(f"{at}.groupName", f"{name!r} is there twice")
        names.append(name)
        if not NAME.fullmatch(name):
            yield Finding(f"{at}.groupName", f"{name!r} must be small letters, digits and '-'")
        if GROUP_LABEL not in (group.get("labels") or {}):
            yield Finding(f"{at}.labels", f"must have {GROUP_LABEL}: runs choose their nodes by it")
        if "labels" in (group.get("rayStartParams") or {}):
            yield Finding(f"{at}.rayStartParams.labels", "is not for rayStartParams: use the group's labels")
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if low is None or high is None:
            yield Finding(f"{at}.minReplicas", "minReplicas and maxReplicas must both be given")
        elif not 0 <= low <= group.get("replicas", 0) <= high:
            text = f"{group.get('replicas', 0)} must be from minReplicas, {low}, to maxReplicas, {high}"
            yield Finding(f"{at}.replicas", text)


def _autoscaling(document: Object, place: str, cluster: Object, objects: Objects) -> Iterator[Finding]:
    options = cluster.get("autoscalerOptions")
    groups = list(enumerate(cluster.get("workerGroupSpecs") or []))
    on = bool(cluster.get("enableInTreeAutoscaling"))
    version = (options or {}).get("version")
    for index, group in groups:
        if "idleTimeoutSeconds" in group and not (on and version == "v2"):
            at = f"{place}.workerGroupSpecs[{index}].idleTimeoutSeconds"
            yield Finding(at, "needs enableInTreeAutoscaling and autoscalerOptions.version v2")
    if not on:
        if options is not None:
            yield Finding(f"{place}.autoscalerOptions", "has no effect without enableInTreeAutoscaling: true")
        return
    if QUEUE_LABEL in (document["metadata"].get("labels") or {}):
        text = "must not be true for what waits in a queue of Kueue: it admits a number of pods that stays"
        yield Finding(f"{place}.enableInTreeAutoscaling", text)
    if int((options or {}).get("idleTimeoutSeconds", 60)) < 0:
        yield Finding(f"{place}.autoscalerOptions.idleTimeoutSeconds", "must not be negative")
    if all(group.get("minReplicas") == group.get("maxReplicas") for _, group in groups):
        yield Finding(f"{place}.workerGroupSpecs", "no group may grow: minReplicas is maxReplicas in all of them")
    templates = [(f"{place}.headGroupSpec", cluster.get("headGroupSpec") or {})]
    templates += [(f"{place}.workerGroupSpecs[{index}]", group) for index, group in groups]
    for at, group in templates:
        policy = ((group.get("template") or {}).get("spec") or {}).get("restartPolicy", "Never")
        if version == "v2" and policy != "Never":
            yield Finding(
                f"{at}.template.spec.restartPolicy", f"must be Never or left out, not {policy}, for autoscaler v2"
            )
        if group.get("suspend"):
            yield Finding(f"{at}.suspend", "a group cannot be suspended where an autoscaler runs")
    yield from _autoscaler_account(place, cluster, objects)


def _autoscaler_account(place: str, cluster: Object, objects: Objects) -> Iterator[Finding]:
    """KubeRay makes no role for an account that is named: the autoscaler would start, and be refused."""
    spec = ((cluster.get("headGroupSpec") or {}).get("template") or {}).get("spec") or {}
    account = spec.get("serviceAccountName")
    roles = {
        bound["roleRef"]["name"]
        for bound in objects.of("RoleBinding")
        if account in [subject.get("name") for subject in bound.get("subjects") or []]
    }
    rules = [rule for role in objects.of("Role") if name_of(role) in roles for rule in role.get("rules") or []]
    at = f"{place}.headGroupSpec.template.spec"
    for resource, verb in (("pods", "list"), ("rayclusters", "patch")):
        if account and not any(resource in rule["resources"] and verb in rule["verbs"] for rule in rules):
            yield Finding(f"{at}.serviceAccountName", f"{account} may not {verb} {resource}, which the autoscaler must")
    if spec.get("automountServiceAccountToken") is False:
        yield Finding(f"{at}.automountServiceAccountToken", "must be true: the autoscaler talks to Kubernetes")


def _fault_tolerance(place: str, cluster: Object) -> Iterator[Finding]:
    options = cluster.get("gcsFaultToleranceOptions")
    at = f"{place}.headGroupSpec.template.spec.containers[0].env"
    head = Container(at, next(iter(cluster["headGroupSpec"]["template"]["spec"]["containers"]), {}))
    for name in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"):
        if name in head.env:
            yield Finding(at, f"{name} is KubeRay's to set: use gcsFaultToleranceOptions")
    if options is None:
        return
    rocks = options.get("backend") == "rocksdb"
    for name in ("redisAddress", "redisPassword"):
        if rocks == (name in options):
            text = "is not for the rocksdb backend" if rocks else "is missing"
            yield Finding(f"{place}.gcsFaultToleranceOptions.{name}", text)


def _memory(pod: Pod) -> Iterator[Finding]:
    """Ray's object store and vLLM live in /dev/shm, which is 64 MiB in a container that is not given more."""
    container = pod.containers[0]
    mounts = {mount.get("mountPath"): mount.get("name") for mount in container.spec.get("volumeMounts") or []}
    volumes = {volume.get("name"): volume for volume in pod.spec.get("volumes") or []}
    shared = (volumes.get(mounts.get("/dev/shm")) or {}).get("emptyDir") or {}
    if shared.get("medium") != "Memory" or "sizeLimit" not in shared:
        text = "/dev/shm must be an emptyDir with medium Memory and a sizeLimit: Ray's object store is in it"
        yield Finding(f"{container.where}.volumeMounts", text)
        return
    limit = ((container.spec.get("resources") or {}).get("limits") or {}).get("memory")
    if limit is not None and quantity(shared["sizeLimit"]) > quantity(limit):
        text = f"{limit} is less than /dev/shm alone may take, {shared['sizeLimit']}"
        yield Finding(f"{container.where}.resources.limits.memory", text)
    store = str(pod.params.get("object-store-memory", "0"))
    if not store.isdigit() or float(store) > quantity(shared["sizeLimit"]):
        text = f"object-store-memory={store} must be bytes that fit into /dev/shm, {shared['sizeLimit']}"
        yield Finding(f"{pod.where.removesuffix('.template')}.rayStartParams", text)


def _job(document: Object, cluster: Object) -> Iterator[Finding]:
    spec: Any = document["spec"]
    place = f"{where(document)}: spec"
    if (spec.get("suspend") or spec.get("ttlSecondsAfterFinished")) and not spec.get("shutdownAfterJobFinishes"):
        yield Finding(
            f"{place}.shutdownAfterJobFinishes", "must be true: suspending ends the cluster, and so does the end"
        )
    if not spec.get("backoffLimit"):
        yield Finding(f"{place}.backoffLimit", "must be more than 0: a retry resumes from the checkpoint")
    if spec.get("submissionMode", "K8sJobMode") == "K8sJobMode" and not spec.get("submitterPodTemplate"):
        yield Finding(
            f"{place}.submitterPodTemplate", "is missing: KubeRay's own pod is refused where pods are restricted"
        )
    words = shlex.split(str(spec.get("entrypoint", "")))
    if words[:2] != ["rollcall", "train"]:
        yield Finding(f"{place}.entrypoint", "must begin with: rollcall train RECIPE")
        return
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    run = (spec.get("metadata") or {}).get("rollcall_run")
    if "name" not in settings or run != settings["name"]:
        text = f"name={settings.get('name')} and metadata.rollcall_run={run} must be the same: the run's name"
        yield Finding(f"{place}.entrypoint", text)
    labels = {str((group.get("labels") or {}).get(GROUP_LABEL)) for group in cluster.get("workerGroupSpecs") or []}
    for key, value in settings.items():
        if key.endswith(f".label_selector.{GROUP_LABEL}") and value not in labels:
            yield Finding(
                f"{place}.entrypoint",
                f"{key}={value}: no worker group is labelled so, only {', '.join(sorted(labels))}",
            )
    yield from _driver(place, spec, cluster)


def _driver(place: str, spec: Object, cluster: Object) -> Iterator[Finding]:
    """Where the entrypoint runs: on a worker that has what it asks for, never on the head."""
    try:
        asked = json.loads(spec.get("entrypointResources") or "{}")
        given = [_resources(group) for group in cluster.get("workerGroupSpecs") or []]
    except ValueError as error:
        yield Finding(f"{place}.entrypointResources", f"is no JSON: {error}")
        return
    if not asked and not spec.get("entrypointNumCpus"):
        yield Finding(f"{place}.entrypointResources", "is missing: without it the run is driven from the head")
    elif asked and not any(all(have.get(name, 0) >= need for name, need in asked.items()) for have in given):
        yield Finding(f"{place}.entrypointResources", f"no worker group has {asked}: the job would wait for ever")


def _resources(group: Object) -> dict[str, float]:
    text = str((group.get("rayStartParams") or {}).get("resources", "{}")).strip("'\"").replace('\\"', '"')
    return dict(json.loads(text))
