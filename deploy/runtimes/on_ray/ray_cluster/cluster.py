"""Which Ray cluster a run uses: the one of RAY_ADDRESS, else a private local one that ends with the command, even when
the command is killed. Whoever may talk to it knows its token. Knows nothing of what runs there."""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import secrets
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rollcall.cluster.cores import usable_cores
from rollcall.cluster.errors import BadInput, ClusterLost
from rollcall.cluster.store.private_folder import PrivateFolder
from rollcall.deploy.plan.planning import LEAST_STORE
from rollcall.deploy.runtimes.on_ray.ray_cluster.bare_node import bare_node
from rollcall.deploy.runtimes.on_ray.ray_cluster.cluster_watch import ClusterWatch
from rollcall.deploy.runtimes.on_ray.ray_cluster.guardian import Guardian
from rollcall.deploy.runtimes.on_ray.ray_cluster.loopback import LOOPBACK, on_loopback

AUTH_MODE, AUTH_TOKEN, AUTH_TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
METRICS = "RAY_enable_metrics_collection"
SLOW_S = 300  # that a process of a private cluster may take over an answer
STUCK_S = 60  # that this process may stand in a call of a cluster that is lost
CONTACT_TIMEOUT_S = 10.0  # for a head that does not answer at all; Ray itself would ask for a minute

_log = logging.getLogger("rollcall")


@dataclass(frozen=True)
class Cluster:
    """A cluster that is connected to."""

    guardian: Guardian | None = None  # of a private one
    watch: ClusterWatch | None = None  # likewise
    folder: PrivateFolder | None = None  # likewise: its sockets and logs, for nobody else

    @property
    def private(self) -> bool:
        """Started by this command, for this run alone."""
        return self.guardian is not None

    def check(self, *, now: bool = False) -> None:
        """As ClusterWatch.check; of one that others run, nothing is known."""
        if self.watch is not None:
            self.watch.check(now=now)

    @property
    def is_lost(self) -> bool:
        return self.watch is not None and self.watch.is_lost

    def close(self) -> None:
        """Disconnects; a private cluster ends."""
        import ray

        if self.is_lost:
            assert self.watch is not None
            self.watch.end()
        ray.shutdown()
        if self.watch is not None:
            self.watch.dismiss()
        if self.guardian is not None:
            self.guardian.dismiss()
        if self.folder is not None:
            self.folder.close()


def connect(*, num_cpus: float, store_bytes: int = LEAST_STORE) -> Cluster:
    """Connects to RAY_ADDRESS, or starts a local cluster with at least so many CPUs, whatever the machine has, and so
    much room for objects.

    Raises:
      BadInput: when the cluster of RAY_ADDRESS does not answer, or does not let us in.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A run's own metrics go through the driver; Ray's agent would take a core's share on a small machine.
    os.environ.setdefault(METRICS, "0")
    # At its end Ray would kill every child of this process, Redis and the guardian among them, in mid-write.
    os.environ.setdefault("RAY_kill_child_processes_on_worker_exit", "false")
    address = os.environ.get("RAY_ADDRESS")
    with warnings.catch_warnings(), _our_signals():
        warnings.simplefilter("ignore")
        cluster = _join(address) if address else _start(num_cpus, store_bytes)
    importlib.import_module("ray._private.worker").print_to_stdstream = _log_words  # type: ignore[attr-defined]
    return cluster


def _log_words(words: Mapping[str, Any], ignore_prefix: bool = False) -> None:
    """What Ray would print on the terminal: of every process that dies, 900 characters. What became of it, the run says
    itself."""
    for line in words["lines"]:
        _log.info("Ray says: %s", " ".join(str(line).split())[:300])


def _join(address: str) -> Cluster:
    """RAY_AUTH_MODE must be the cluster's. Where it is not set, we say what Ray assumes for a given address; of a
    cluster that Ray finds by itself it knows better."""
    if ":" in address:
        os.environ.setdefault(AUTH_MODE, "disabled")
    _knock(address)
    _check_token(address)
    _ask(address)
    import ray
    from ray.exceptions import AuthenticationError

    where = f"RAY_ADDRESS={address}"
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError:
        raise BadInput(f"{where}: {_refusal()}") from None
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RaySystemError) as error:
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())
        if "Version mismatch" in reason:
            raise BadInput(f"{where}: {_mismatch(str(error))}") from None
        if re.search("unauthenticated|authentication", reason, re.IGNORECASE):
            raise BadInput(f"{where}: {_refusal()}") from None
        raise BadInput(f"{where}: no Ray cluster answers there ({reason[:200]})") from None
    return Cluster()


def _is_plain(address: str) -> bool:
    """host:port. Ray's other forms, such as auto, are left to Ray."""
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdigit() and "://" not in address


def _ask(address: str) -> None:
    """Whether a Ray head answers, and takes our token. Ray itself would ask for twenty seconds, complaining."""
    if not _is_plain(address):
        return
    grpc: Any = importlib.import_module("grpc")
    gcs: Any = importlib.import_module("ray._private.gcs_utils")
    requests: Any = importlib.import_module("ray.core.generated.gcs_service_pb2")
    stubs: Any = importlib.import_module("ray.core.generated.gcs_service_pb2_grpc")
    channel = gcs.create_gcs_channel(address)
    try:
        stubs.NodeInfoGcsServiceStub(channel).GetClusterId(requests.GetClusterIdRequest(), timeout=CONTACT_TIMEOUT_S)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise BadInput(f"RAY_ADDRESS={address}: {_refusal()}") from None
        words = " ".join(str(error.details()).split())[:200]
        raise BadInput(f"RAY_ADDRESS={address}: no Ray cluster answers there ({words})") from None
    finally:
        channel.close()


def _knock(address: str) -> None:
    """Whether anybody listens there."""
    if not _is_plain(address):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONTACT_TIMEOUT_S).close()
    except OSError as error:
        raise BadInput(
            f"RAY_ADDRESS={address}: nobody listens there ({error.strerror or error}): is the head node up, and is "
            "this its address?"
        ) from None


def _check_token(address: str) -> None:
    """Where a token is to be shown, there must be one. (Ray ends the whole process over a file that it cannot read.)"""
    if os.environ.get(AUTH_MODE, "").lower() != "token" or os.environ.get(AUTH_TOKEN):
        return
    path = Path(os.environ.get(AUTH_TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    try:
        problem = "" if path.read_text().strip() else "is empty"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({getattr(error, 'strerror', error)})"
    if problem:
        raise BadInput(
            f"RAY_ADDRESS={address}: {AUTH_MODE} is token, and {path} {problem}: set {AUTH_TOKEN_PATH} to a file with "
            "the cluster's token"
        )


def _refusal() -> str:
    mode = os.environ.get(AUTH_MODE) or "not set"
    if mode.lower() != "token":
        return f"the cluster wants a token, and {AUTH_MODE} is {mode}: set {AUTH_MODE}=token and {AUTH_TOKEN_PATH}"
    return f"the cluster does not take our token: set {AUTH_TOKEN_PATH} to a file with the cluster's"


def _mismatch(text: str) -> str:
    """Ray's own words for it are six lines."""
    found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", text)
    if len(found) != 2:
        return " ".join(text.split())[:300]
    (there_ray, there_python), (here_ray, here_python) = found
    return (
        f"the cluster runs Ray {there_ray} on Python {there_python}, this is Ray {here_ray} on Python {here_python}: "
        "both must be the same"
    )


_own_token = ""


@contextmanager
def _private_token() -> Iterator[None]:
    """A private cluster is under a token of its own, which only its processes inherit, unless the user has said how it
    is to be. Ray reads it once in a process: a second cluster of this process is under the same."""
    global _own_token
    chosen = os.environ.get(AUTH_MODE)
    if chosen is not None and chosen.lower() != "token":
        yield
        return
    os.environ[AUTH_MODE] = "token"
    if "ray" in sys.modules:  # it has looked at the mode already
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
    if os.environ.get(AUTH_TOKEN) or os.environ.get(AUTH_TOKEN_PATH):
        yield
        return
    _own_token = _own_token or secrets.token_hex(32)
    os.environ[AUTH_TOKEN] = _own_token
    try:
        yield
    finally:
        del os.environ[AUTH_TOKEN]


def _start(num_cpus: float, store_bytes: int) -> Cluster:
    # Ray lets its workers step back behind everything else (niceness 15): here they are the work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Who of Ray's is gone, we see in seconds (ClusterWatch). Who is only slow, on a machine that has much else to do,
    # is waited for: after 60 s without an answer Ray would end this process, without a word from us.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(SLOW_S))
    os.environ.setdefault("RAY_health_check_timeout_ms", str(1000 * SLOW_S))
    # The store of facts would keep what became of the newest 100,000 calls, for a dashboard that is not there.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    folder = PrivateFolder()
    guardian = Guardian(folder.path)
    before, starting = psutil.Process().children(), ClusterWatch(())

    def children() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child not in before]

    starting.guard(STUCK_S, _end_at_once, children=children, every_s=0.2)
    try:
        with _private_token(), on_loopback(), guardian.leads_what_ray_starts(), ExitStack() as changes:
            import ray

            if os.environ[METRICS].lower() in ("0", "false"):  # or somebody wants what Ray's agent collects
                changes.enter_context(bare_node())
            ray.init(
                address="local",  # or it would join whatever `ray start` left a note of on this machine, alive or not
                num_cpus=max(math.ceil(num_cpus), usable_cores()),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=store_bytes,
                _node_ip_address=LOOPBACK,
                _temp_dir=str(folder.path / "ray"),  # Ray opens this one to everybody
            )
    except BaseException as error:  # a signal's, too
        starting.see(children())
        is_lost = starting.is_lost
        with suppress(Exception):
            importlib.import_module("ray").shutdown()
        guardian.dismiss()
        folder.close()
        if is_lost and isinstance(error, Exception):
            raise ClusterLost("the private Ray cluster is lost: a process of it died while it started") from error
        raise
    finally:
        starting.dismiss()
    watch = ClusterWatch(children())
    watch.guard(STUCK_S, _end_at_once)
    return Cluster(guardian, watch, folder)


def _end_at_once() -> None:
    """As if killed: the guardian ends what Ray has started, and all that is written is whole."""
    _log.error(
        "the private Ray cluster was lost %d s ago, and Ray does not let go of this process: it ends here; "
        "go on with: rollcall resume RUN",
        STUCK_S,
    )
    os._exit(1)


@contextmanager
def _our_signals() -> Iterator[None]:
    """Ray installs handlers of its own, under which a SIGTERM would end the driver without a checkpoint."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        with suppress(ValueError):  # not in the main thread: then nothing was changed either
            for number, handler in before.items():
                signal.signal(number, handler)
