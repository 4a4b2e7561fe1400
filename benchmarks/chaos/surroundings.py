"""What a run stands on, where chaos is to reach it too: a small disk that fills up, a Redis and a reward service behind
a network that can be cut, and a clock that stands still or jumps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.chaos.on_path.sitecustomize import SLOW_DISK
from benchmarks.chaos.proxy import Proxy
from rollcall.cluster.store.redis_server import find_redis_server, redis_client

DISK = "24m"
CLOCK_SOURCE = Path(__file__).with_name("clock.c")
TOKEN = "chaos"


class Unavailable(Exception):
    """This machine cannot do that to a run."""


class Surroundings:
    """Of one round, in its folder. `settings` and `environment` are for the run."""

    def __init__(self, wanted: frozenset[str], folder: Path, armed: Path) -> None:
        """Raises Unavailable: naming what this machine lacks."""
        self.folder, self.runs, self._armed = folder, folder / "runs", armed
        self.settings: tuple[str, ...] = ()
        self.environment: dict[str, str] = {}
        self.redis_url: str | None = None  # as an audit may use it
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._starts: dict[str, Callable[[], subprocess.Popen[bytes]]] = {}
        self._proxies: dict[str, Proxy] = {}
        self._mounted = False
        self.runs.mkdir()
        try:
            if "disk" in wanted:
                self._mount()
            if "clock" in wanted:
                self._fake_clock()
            if "proxy" in wanted:
                self._serve_beyond_a_network()
        except BaseException:
            self.close()
            raise

    def processes(self) -> Mapping[str, psutil.Process]:
        """Those that are no children of the run."""
        return {name: psutil.Process(child.pid) for name, child in self._children.items() if child.poll() is None}

    def revive(self) -> None:
        """Whoever was killed of them is started again: nobody else does."""
        for name, child in self._children.items():
            if child.poll() is not None:
                self._children[name] = self._starts[name]()

    def close(self) -> None:
        for child in self._children.values():
            child.kill()
            child.wait()
        for proxy in self._proxies.values():
            proxy.close()
        if self._mounted:
            subprocess.run(["umount", "--lazy", self.runs], check=True)

    def bring(self, fault: str, run: Path, seconds: float) -> None:
        """Returns when it is over."""
        how, _, whose = fault.partition(":")
        if how == "clock":
            self._turn_clock(whose, seconds)
        elif how == "full_redis":
            self._fill_redis(run, seconds)
        elif how == "full_disk":
            self._fill_disk(seconds)
        elif how == "slow_disk":
            self._slow_disk(seconds)
        else:
            self._disturb(how, whose, seconds)

    # A disk.

    def _mount(self) -> None:
        if os.geteuid() != 0:
            raise Unavailable("a disk that fills up: only root can mount one")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", self.runs], capture_output=True)
        if done.returncode:
            raise Unavailable(f"a disk that fills up: {done.stderr.decode().strip()}")
        self._mounted = True

    def _fill_disk(self, seconds: float) -> None:
        ballast = self.runs / "ballast"
        with ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
        time.sleep(seconds)
        ballast.unlink()

    def _slow_disk(self, seconds: float) -> None:
        (self._armed / SLOW_DISK).touch()
        time.sleep(seconds)
        (self._armed / SLOW_DISK).unlink()

    # Redis.

    def _fill_redis(self, run: Path, seconds: float) -> None:
        with suppress(Exception):  # it may be starting just now
            where = json.loads((run / "redis" / "server.json").read_text())
            with redis_client(unix_socket_path=where["socket"], password=where["password"]) as client:
                client.config_set("maxmemory", "1mb")
                time.sleep(seconds)
                client.config_set("maxmemory", "0")

    # A clock.

    def _fake_clock(self) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or sys.platform != "linux":
            raise Unavailable("a clock that stands still: needs Linux and a C compiler")
        library = self.folder / "clock.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, CLOCK_SOURCE], check=True)
        self._clock = self.folder / "clock"
        self._set_clock(0, 0)
        self.environment |= {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._clock)}

    def _set_clock(self, stands: int, offset_s: int) -> None:
        with open(os.open(self._clock, os.O_WRONLY | os.O_CREAT), "wb") as file:  # in place: it is mapped
            file.write(struct.pack("ll", stands, offset_s))

    def _turn_clock(self, how: str, seconds: float) -> None:
        """Of all processes of the run, what says the time of day; what measures durations goes on."""
        settings = {"stands": (int(time.time()), 0), "back": (0, -7200), "forward": (0, 86_400)}
        self._set_clock(*settings[how])
        time.sleep(seconds)
        self._set_clock(0, 0)

    # A network.

    def _serve_beyond_a_network(self) -> None:
        self._redis_port, self._reward_port = _free_port(), _free_port()
        (self.folder / "redis").mkdir()
        (self.folder / "token").touch(0o600)
        (self.folder / "token").write_text(TOKEN)
        self._starts = {"redis": self._start_redis, "reward_service": self._start_reward_service}
        for name, start in self._starts.items():
            self._children[name] = start()
        for port in (self._redis_port, self._reward_port):
            _wait_for(port)
        self._proxies = {"redis": Proxy(self._redis_port), "reward": Proxy(self._reward_port)}
        self.redis_url = f"redis://127.0.0.1:{self._redis_port}/0"
        reward = f"http://127.0.0.1:{self._proxies['reward'].port}"
        self.settings = (f"redis.url=redis://127.0.0.1:{self._proxies['redis'].port}/0", f"reward={{url: '{reward}'}}")
        self.environment |= {"ROLLCALL_REWARD_TOKEN": TOKEN}

    def _start_redis(self) -> subprocess.Popen[bytes]:
        command = [find_redis_server(), *("--port", str(self._redis_port)), *("--bind", "127.0.0.1"), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "everysec", "--dir", str(self.folder / "redis")]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)

    def _start_reward_service(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rollcall.deploy.cli", "reward", "serve", "--port", str(self._reward_port)]
        command += ["--model", "reward=scoring:score", "--token-file", str(self.folder / "token")]
        with (self.folder / "reward_service.log").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, process_group=0)

    def _disturb(self, how: str, whose: str, seconds: float) -> None:
        """`cut`: refused for so long; `hold`: nothing comes through; `slow`: half a second for each piece each way."""
        proxy = self._proxies[whose]
        if how == "cut":
            proxy.refuses = True
            proxy.cut()
            time.sleep(seconds)
            proxy.refuses = False
        elif how == "hold":
            proxy.holds = True
            time.sleep(seconds)
            proxy.holds = False
        else:
            proxy.delay_s = 0.5
            time.sleep(seconds)
            proxy.delay_s = 0.0


def _wait_for(port: int, timeout_s: float = 240.0) -> None:
    """Until somebody listens there."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens at port {port} after {timeout_s:.0f} s")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def gently_end(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """SIGTERM; its exit code, None if it has not ended."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout_s)
    return None
