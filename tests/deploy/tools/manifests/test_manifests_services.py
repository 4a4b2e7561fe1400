"""What the manifests say is understood by those that they say it to: Rollcall's command line, the reward service, a
real Redis."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import yaml

from rollcall.cluster.errors import BadInput
from rollcall.cluster.store.redis_server import find_redis_server, redis_client
from rollcall.deploy.tools.manifests import check as manifests
from rollcall.deploy.tools.manifests.objects import Objects
from rollcall.deploy.tools.manifests.references import USER_SECRETS
from rollcall.reward_service.service.auth import client_token
from rollcall.reward_service.service.service_config import ServiceConfig
from tests.deploy.tools.manifests.manifest_builds import K8S, OVERLAYS, base, built
from tests.needs import needs
from tests.runs import config_of


@needs("kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_entrypoints_are_commands_that_this_version_knows(overlay: str) -> None:
    jobs = [document for document in built(overlay) if document["kind"] == "RayJob"]
    assert len(jobs) == 2
    for job in jobs:
        program, command, recipe, *overrides = shlex.split(job["spec"]["entrypoint"])
        assert (program, command) == ("rollcall", "train")
        config = config_of(recipe, [override for override in overrides if "=cuda" not in override])
        assert config.name == job["metadata"]["name"] == job["spec"]["metadata"]["rollcall_run"]
        assert config.metrics.host == "0.0.0.0" and config.metrics.port == 9464


def test_the_reward_service_understands_its_settings() -> None:
    objects = Objects(base())
    [settings] = [d for d in objects.of("ConfigMap") if d["metadata"]["name"] == "rollcall-reward-service"]
    config = ServiceConfig.model_validate(yaml.safe_load(settings["data"]["service.yaml"]))
    [pod] = objects.matching({"matchLabels": {"app.kubernetes.io/component": "reward-service"}}, "rollcall")
    container = pod.containers[0]
    mounts = [mount["mountPath"] for mount in container.spec["volumeMounts"]]
    assert config.host == "0.0.0.0" and container.ports["http"] == config.port
    assert str(config.token_file).rpartition("/")[0] in mounts
    assert all(str(root) in mounts for root in config.model_roots)
    assert config.drain_timeout_s + 15 < pod.spec["terminationGracePeriodSeconds"]


def test_secrets_are_made_once_for_nobody_else_to_read(secrets: Path) -> None:
    files = [path for path in secrets.iterdir() if path.name in (secrets / ".gitignore").read_text().replace("/", "")]
    assert len(files) == 5 and all(path.stat().st_mode & 0o077 == 0 for path in files)
    before = {path.name: path.read_bytes() for path in files}
    assert len(set(before.values())) == 5 and all(len(text) >= 64 for text in before.values())
    subprocess.run([secrets / "make.sh"], check=True, capture_output=True)
    assert before == {path.name: path.read_bytes() for path in files}, "what is there stays"


@needs("kubectl")
def test_the_secrets_are_those_that_the_manifests_name(secrets: Path) -> None:
    documents, warnings = manifests.read(str(secrets))
    assert not warnings
    assert {d["metadata"]["name"]: tuple(d["data"]) for d in documents} == {
        n: tuple(k) for n, k in USER_SECRETS.items()
    }
    assert {d["metadata"]["namespace"] for d in documents} == {"rollcall"}


def test_redis_keeps_to_its_users_file(secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server with the shipped settings: who has no password may only PING, and runs see their own keys alone."""
    [settings] = [d for d in Objects(base()).of("ConfigMap") if d["metadata"]["name"] == "rollcall-redis"]
    text = settings["data"]["redis.conf"]
    port = _free_port()
    text = text.replace("port 6379", f"port {port}").replace("bind * -::*", "bind 127.0.0.1")
    text = text.replace("/etc/rollcall/secrets/redis/users.acl", str(secrets / "redis-users.acl"))
    (tmp_path / "redis.conf").write_text(text.replace("dir /data", f"dir {tmp_path}"))
    server = subprocess.Popen([find_redis_server(), str(tmp_path / "redis.conf")], stdout=subprocess.DEVNULL)
    try:
        anybody = redis_client(port=port)
        _until(lambda: bool(anybody.ping()))
        command: tuple[str, ...]
        for command in (("GET", "rollcall:x"), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("ACL", "LIST")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                anybody.execute_command(*command)
        run = redis_client(port=port, username="rollcall", password=(secrets / "redis-password").read_text())
        assert run.set("rollcall:{run}:x", "1") and run.eval("return redis.call('GET', KEYS[1])", 1, "rollcall:{run}:x")
        with run.pipeline(transaction=True) as pipe:
            pipe.hset("rollcall:{run}:h", "a", "1")
            pipe.zadd("rollcall:{run}:z", {"a": 1})
            assert pipe.execute() == [1, 1]
        for command in (("GET", "RAYx@KV"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                run.execute_command(*command)
        head = redis_client(port=port, username="gcs", password=(secrets / "gcs-password").read_text())
        assert head.hset("RAYx@KV", "a", "1") == 1 and head.info("server")
        with pytest.raises(redis.exceptions.NoPermissionError):
            head.get("rollcall:{run}:x")
        monkeypatch.setenv("ROLLCALL_REDIS_URL", f"redis://rollcall@127.0.0.1:{port}/0")
        monkeypatch.setenv("ROLLCALL_REDIS_PASSWORD_FILE", str(secrets / "redis-password"))
        url = ServiceConfig().redis.resolved()
        assert url is not None and redis.Redis.from_url(url).set("rollcall:reward:x", "1"), "as the pods are told"
        monkeypatch.setenv("ROLLCALL_REDIS_URL", url)
        assert ServiceConfig().redis.resolved() == url, "a service that a run starts is given it whole"
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis_client(port=port, username="rollcall", password="wrong").ping()
        assert list(
            (tmp_path / "appendonlydir").iterdir() if (tmp_path / "appendonlydir").exists() else tmp_path.glob("*.aof")
        )
    finally:
        server.terminate()
        server.wait(10)


def test_a_secret_as_kubernetes_mounts_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another owner, for our group to read: pods that are not root get no other. As our own it would be refused."""
    path = tmp_path / "token"
    path.write_text("abc\n")
    path.chmod(0o440)
    monkeypatch.setenv("ROLLCALL_REWARD_TOKEN_FILE", str(path))
    with pytest.raises(BadInput, match="chmod 600"):
        client_token()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert client_token() == "abc"
    for mode in (0o444, 0o460, 0o441):
        path.chmod(mode)
        with pytest.raises(BadInput, match="chmod 600"):
            client_token()
    monkeypatch.delenv("ROLLCALL_REWARD_TOKEN_FILE")
    monkeypatch.setenv("ROLLCALL_REWARD_TOKEN", "def")
    assert client_token() == "def"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    shutil.copytree(K8S / "secrets", folder, ignore=shutil.ignore_patterns("*-token", "*-password", "*.acl"))
    subprocess.run([folder / "make.sh"], check=True, capture_output=True)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    for _ in itertools.count():
        try:
            if condition():
                return
        except redis.exceptions.ConnectionError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.02)
