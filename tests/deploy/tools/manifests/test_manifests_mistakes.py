"""Mistakes in manifests are found, each with its place: by rules that always run, by KubeRay's definitions where they
are at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.tools.manifests import check as manifests
from rollcall.deploy.tools.manifests.schema import read_kinds
from tests.deploy.tools.manifests.manifest_builds import Documents, base, built, crds, of
from tests.needs import needs


def job(documents: Documents) -> dict[str, Any]:
    return of(documents, "RayJob", "cartpole-ppo")


def pod_of(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]  # type: ignore[no-any-return]


def head(documents: Documents) -> dict[str, Any]:
    return job(documents)["spec"]["rayClusterSpec"]["headGroupSpec"]  # type: ignore[no-any-return]


def gym(documents: Documents) -> dict[str, Any]:
    return job(documents)["spec"]["rayClusterSpec"]["workerGroupSpecs"][2]  # type: ignore[no-any-return]


CLUSTER = "RayJob/cartpole-ppo: spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec.template.spec"
GYM = f"{CLUSTER}.workerGroupSpecs[2]"
SERVICE = "Deployment/rollcall-reward-service: spec.template.spec"
Mutation = Callable[[Documents], Any]

MUTATIONS: dict[str, tuple[Mutation, str]] = {
    "no authentication": (
        lambda d: job(d)["spec"]["rayClusterSpec"].pop("authOptions"),
        f"{CLUSTER}.authOptions.mode: must be token",
    ),
    "authentication switched off in a pod": (
        lambda d: pod_of(gym(d))["containers"][0]["env"][0].update(value="disabled"),
        f"{GYM}.template.spec.containers[0].env: RAY_AUTH_MODE",
    ),
    "a name that is too long": (
        lambda d: job(d)["metadata"].update(name="cartpole-" + "x" * 40),
        f"RayJob/cartpole-{'x' * 40}: metadata.name: ",
    ),
    "a name that begins with a digit": (
        lambda d: of(d, "RayCluster", "rollcall")["metadata"].update(name="9lives"),
        "RayCluster/9lives: metadata.name: ",
    ),
    "a privileged pod": (
        lambda d: pod_of(gym(d))["containers"][0]["securityContext"].update(privileged=True),
        f"{GYM}.template.spec.containers[0].securityContext.privileged: ",
    ),
    "a capability": (
        lambda d: pod_of(gym(d))["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
        f"{GYM}.template.spec.containers[0].securityContext.capabilities.add: ",
    ),
    "root": (
        lambda d: pod_of(head(d))["securityContext"].update(runAsUser=0),
        f"{HEAD}.containers[0].securityContext.runAsUser: ",
    ),
    "the node's network": (
        lambda d: pod_of(head(d)).update(hostNetwork=True),
        f"{HEAD}.hostNetwork: ",
    ),
    "the node's disk": (
        lambda d: pod_of(head(d))["volumes"].append({"name": "disk", "hostPath": {"path": "/"}}),
        f"{HEAD}.volumes[4].hostPath: ",
    ),
    "no resources": (
        lambda d: pod_of(gym(d))["containers"][0].pop("resources"),
        f"{GYM}.template.spec.containers[0].resources.requests.cpu: is missing",
    ),
    "requests beyond the limits": (
        lambda d: pod_of(gym(d))["containers"][0]["resources"]["requests"].update(memory="64Gi"),
        f"{GYM}.template.spec.containers[0].resources.requests.memory: ",
    ),
    "an image that changes": (
        lambda d: pod_of(gym(d))["containers"][0].update(image="rollcall:latest"),
        f"{GYM}.template.spec.containers[0].image: ",
    ),
    "too little time to end": (
        lambda d: pod_of(gym(d)).update(terminationGracePeriodSeconds=30),
        f"{GYM}.template.spec.terminationGracePeriodSeconds: 30 s is too short",
    ),
    "work on the head": (
        lambda d: head(d)["rayStartParams"].pop("num-cpus"),
        f"{CLUSTER}.headGroupSpec.rayStartParams.num-cpus: ",
    ),
    "a run driven from the head": (
        lambda d: job(d)["spec"].pop("entrypointResources"),
        "RayJob/cartpole-ppo: spec.entrypointResources: is missing",
    ),
    "a resource that no group has": (
        lambda d: job(d)["spec"].update(entrypointResources='{"drivers": 1}'),
        "RayJob/cartpole-ppo: spec.entrypointResources: no worker group has",
    ),
    "a role without nodes": (
        lambda d: gym(d)["labels"].update(rollcall="gmy"),
        "RayJob/cartpole-ppo: spec.entrypoint: cluster.actors.label_selector.rollcall=gym",
    ),
    "no shared memory": (
        lambda d: pod_of(gym(d))["volumes"][0]["emptyDir"].pop("medium"),
        f"{GYM}.template.spec.containers[0].volumeMounts: /dev/shm",
    ),
    "an object store that does not fit": (
        lambda d: gym(d)["rayStartParams"].update({"object-store-memory": "9000000000"}),
        f"{GYM}.rayStartParams: object-store-memory=9000000000",
    ),
    "replicas beyond their bounds": (
        lambda d: gym(d).update(replicas=9),
        f"{GYM}.replicas: 9 must be from",
    ),
    "an idle time without an autoscaler": (
        lambda d: gym(d).update(idleTimeoutSeconds=60),
        f"{GYM}.idleTimeoutSeconds: needs",
    ),
    "an autoscaler that may do nothing": (
        lambda d: job(d)["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=True),
        f"{HEAD}.serviceAccountName: rollcall may not list pods",
    ),
    "a suspended job that keeps its cluster": (
        lambda d: job(d)["spec"].update(shutdownAfterJobFinishes=False),
        "RayJob/cartpole-ppo: spec.shutdownAfterJobFinishes: ",
    ),
    "a job without retries": (
        lambda d: job(d)["spec"].update(backoffLimit=0),
        "RayJob/cartpole-ppo: spec.backoffLimit: ",
    ),
    "another Ray than the image's": (
        lambda d: job(d)["spec"]["rayClusterSpec"].update(rayVersion="2.40.0"),
        f"{CLUSTER}.rayVersion: 2.40.0 is not the images' Ray",
    ),
    "a secret that nobody makes": (
        lambda d: job(d)["spec"]["rayClusterSpec"]["authOptions"].update(secretName="rollcall-ray-tokens"),
        "RayJob/cartpole-ppo: spec.rayClusterSpec.authOptions.secretName: no Secret 'rollcall-ray-tokens'",
    ),
    "a secret in clear": (
        lambda d: pod_of(gym(d))["containers"][0]["env"].append({"name": "REWARD_TOKEN", "value": "hunter2"}),
        "RayJob/cartpole-ppo: spec.rayClusterSpec.workerGroupSpecs[2].template.spec.containers[0].env[6]: REWARD_TOKEN",
    ),
    "a password in an address": (
        lambda d: of(d, "Deployment", "rollcall-reward-service")["spec"]["template"]["spec"]["containers"][0]["env"][
            1
        ].update(value="redis://rollcall:hunter2@rollcall-redis:6379"),
        f"{SERVICE}.containers[0].env[1].value: holds an address with a password",
    ),
    "a claim that is not there": (
        lambda d: pod_of(gym(d))["volumes"][2]["persistentVolumeClaim"].update(claimName="rollcall-run"),
        f"{GYM}.template.spec.volumes[2].persistentVolumeClaim.claimName: no PersistentVolumeClaim",
    ),
    "a mount of nothing": (
        lambda d: pod_of(gym(d))["containers"][0]["volumeMounts"][2].update(name="rns"),
        f"{GYM}.template.spec.containers[0].volumeMounts[2].name: 'rns' is no volume",
    ),
    "a port open to all namespaces": (
        lambda d: of(d, "NetworkPolicy", "redis")["spec"]["ingress"][0].update({"from": [{"namespaceSelector": {}}]}),
        "NetworkPolicy/redis: spec.ingress[0].from[0].namespaceSelector: is empty",
    ),
    "a port open to everybody": (
        lambda d: of(d, "NetworkPolicy", "reward-service")["spec"]["ingress"][0].pop("from"),
        "NetworkPolicy/reward-service: spec.ingress[0].from: is empty",
    ),
    "nothing denied": (
        lambda d: d.remove(of(d, "NetworkPolicy", "deny-all")),
        "Namespace/rollcall: no NetworkPolicy denies all",
    ),
    "a policy for pods that are not there": (
        lambda d: of(d, "NetworkPolicy", "redis")["spec"]["podSelector"]["matchLabels"].update(
            {"app.kubernetes.io/component": "reddis"}
        ),
        "NetworkPolicy/redis: spec.podSelector: selects no pod",
    ),
    "a policy for a port that nobody has": (
        lambda d: of(d, "NetworkPolicy", "redis")["spec"]["ingress"][0]["ports"][0].update(port=6397),
        "NetworkPolicy/redis: spec.ingress[0].ports[0].port: 6397 is no port",
    ),
    "a service to the outside": (
        lambda d: of(d, "Service", "rollcall-redis")["spec"].update(type="LoadBalancer"),
        "Service/rollcall-redis: spec.type: opens it",
    ),
    "replicas that an autoscaler decides": (
        lambda d: of(d, "Deployment", "rollcall-reward-service")["spec"].update(replicas=2),
        "Deployment/rollcall-reward-service: spec.replicas: leave it out",
    ),
    "no probe": (
        lambda d: of(d, "StatefulSet", "rollcall-redis")["spec"]["template"]["spec"]["containers"][0].pop(
            "readinessProbe"
        ),
        "StatefulSet/rollcall-redis: spec.template.spec.containers[0].readinessProbe: is missing",
    ),
    "a token of Kubernetes for nothing": (
        lambda d: pod_of(gym(d)).update(automountServiceAccountToken=True),
        f"{GYM}.template.spec.automountServiceAccountToken: must be false",
    ),
}
TYPOS: dict[str, tuple[Mutation, str]] = {
    "a field with a typo": (
        lambda d: job(d)["spec"].update(shutdownAfterJobFinish=True),
        "RayJob/cartpole-ppo: spec.shutdownAfterJobFinish: unknown field: do you mean shutdownAfterJobFinishes?",
    ),
    "a typo deep in a pod": (
        lambda d: pod_of(gym(d))["containers"][0]["volumeMounts"][0].update(mountpath="/dev/shm"),
        f"{GYM}.template.spec.containers[0].volumeMounts[0].mountpath: unknown field: do you mean mountPath?",
    ),
    "a number as text": (
        lambda d: gym(d).update(replicas="2"),
        f"{GYM}.replicas: '2' must be a whole number",
    ),
    "text as a number": (
        lambda d: head(d)["rayStartParams"].update({"num-cpus": 0}),
        f"{CLUSTER}.headGroupSpec.rayStartParams.num-cpus: 0 must be text",
    ),
    "a mode that there is not": (
        lambda d: job(d)["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        f"{CLUSTER}.authOptions.mode: 'tokens' must be one of disabled, token",
    ),
    "a quantity that is none": (
        lambda d: pod_of(gym(d))["containers"][0]["resources"]["limits"].update(memory="8 GB"),
        f"{GYM}.template.spec.containers[0].resources.limits.memory: '8 GB' does not have the form",
    ),
    "a section that is missing": (
        lambda d: job(d)["spec"]["rayClusterSpec"].pop("headGroupSpec"),
        f"{CLUSTER}.headGroupSpec: is missing",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_found_with_its_place(name: str) -> None:
    mutate, expected = MUTATIONS[name]
    documents = base()
    mutate(documents)
    found = [str(finding) for finding in manifests.check(documents, {})]
    assert [line for line in found if line.startswith(expected)], found


@pytest.mark.parametrize("name", TYPOS)
def test_a_typo_in_a_ray_object_is_found_with_its_place(name: str) -> None:
    mutate, expected = TYPOS[name]
    documents = base()
    mutate(documents)
    found = [str(finding) for finding in manifests.check(documents, crds())]
    assert [line for line in found if line.startswith(expected)], found


@needs("kubectl")
def test_mistakes_in_overlays_are_found_too() -> None:
    documents = built("autoscale")
    cluster = of(documents, "RayCluster", "rollcall")
    cluster["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "rollcall"
    cluster["spec"]["workerGroupSpecs"][1]["template"]["spec"]["restartPolicy"] = "Always"
    cluster["spec"]["autoscalerOptions"]["securityContext"]["privileged"] = True
    found = "\n".join(map(str, manifests.check(documents, {})))
    assert "RayCluster/rollcall: spec.enableInTreeAutoscaling: must not be true for what waits in a queue" in found
    assert "RayCluster/rollcall: spec.workerGroupSpecs[1].template.spec.restartPolicy: must be Never" in found
    assert "RayCluster/rollcall: spec.autoscalerOptions.securityContext.privileged: " in found
    assert "metadata.labels: no LocalQueue 'rollcall'" in found

    documents = built("kueue")
    of(documents, "LocalQueue", "rollcall")["spec"]["clusterQeue"] = "rollcall"
    of(documents, "ClusterQueue", "rollcall")["spec"]["resourceGroups"][0]["flavors"][0]["name"] = "gpus"
    found = "\n".join(map(str, manifests.check(documents, {})))
    assert "LocalQueue/rollcall: spec.clusterQeue: unknown field: do you mean clusterQueue?" in found
    assert "ClusterQueue/rollcall: spec.resourceGroups[0].flavors: no ResourceFlavor 'gpus'" in found

    documents = built("gcs-ft")
    options = of(documents, "RayCluster", "rollcall")["spec"]["gcsFaultToleranceOptions"]
    options["redisPassword"] = {"value": "hunter2"}
    found = "\n".join(map(str, manifests.check(documents, {})))
    assert "gcsFaultToleranceOptions.redisPassword: redisPassword is given in clear" in found


def test_a_user_checks_an_overlay_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, none = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "none.yaml"
    good.write_text(yaml.safe_dump_all(base()))
    documents = base()
    job(documents)["spec"]["backoffLimit"] = 0
    bad.write_text(yaml.safe_dump_all(documents))
    none.write_text("kind: [")
    assert main.main(["manifests", str(good)]) == 0
    assert capsys.readouterr().out == ""
    assert main.main(["manifests", str(bad)]) == 1
    assert capsys.readouterr().out.startswith("RayJob/cartpole-ppo: spec.backoffLimit: must be more than 0")
    for wrong in (none, tmp_path / "nowhere.yaml", tmp_path):
        assert main.main(["manifests", str(wrong)]) == 2
        assert str(wrong) in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no custom resource definition in .*empty \(from --crds\)"):
        read_kinds(tmp_path / "empty")
