"""A service as a child of the program that needs it: started, watched for readiness, started again at the same port,
ended with its parent. The parent's half and the child's."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx
from fastapi import APIRouter
from pydantic import SecretStr

from rollcall.cluster.errors import BadInput, RewardUnavailable
from rollcall.cluster.files import write_aside
from rollcall.reward_service.labelling.routes import OPEN_PATHS, router
from rollcall.reward_service.labelling.store import open_labelling
from rollcall.reward_service.service.auth import TOKEN_VARIABLE
from rollcall.reward_service.service.server import Server, leave_at_once_unless
from rollcall.reward_service.service.service_config import ServiceConfig

_EXIT_BAD_INPUT = 2
_POLL_S = 0.02
_PAUSE_S = 0.1
MOST_KILLED = 10  # times that it may be killed while it starts, in one start
_PR_SET_PDEATHSIG = 1

_log = logging.getLogger("rollcall")


class PrivateService:
    """Loopback, a random token, a port of its own. `start_private` makes one that is ready.

    Settings and token go to the child by its standard input, which stays open: its end tells the child that we ended.
    On Linux the kernel tells it too. It does so at the end of the *thread* that started the child, so every start
    happens on one thread of ours that lives until `stop`.
    """

    def __init__(self, config: ServiceConfig, directory: Path, *, start_timeout_s: float = 300.0) -> None:
        self.directory = directory
        self.log_path = directory / "reward_service.log"
        self.token = SecretStr(os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(32))
        self._config = config.model_copy(update={"host": "127.0.0.1", "port": 0, "token_file": None})
        self._start_timeout_s = start_timeout_s
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward-service-keeper")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, look: Callable[[], None] = lambda: None) -> None:
        """Starts it, at the port that it had before if that is still free, and waits until it is ready. `look`, again
        and again meanwhile, may end the wait by raising.

        Raises:
          BadInput: its settings cannot be used; the message is the child's.
          RewardUnavailable: it is not ready within start_timeout_s; the message has its last words.
        """
        if self.alive():
            return
        deadline = time.monotonic() + self._start_timeout_s
        port, killed = self._port, 0
        while True:
            self._keeper.submit(self._spawn, port).result()
            if self._ready(deadline, look):
                return
            assert self._process is not None
            if self._process.returncode == _EXIT_BAD_INPUT and port and "in use" in self._last_words():
                port = 0
            elif self._process.returncode < 0 and killed < MOST_KILLED and time.monotonic() < deadline:
                killed += 1
                _log.warning("the reward service was killed while it started, and is started again")
                time.sleep(_PAUSE_S * killed)
            else:
                break
        words = self._last_words()
        if self._process is not None and self._process.returncode == _EXIT_BAD_INPUT:
            raise BadInput(words.removeprefix("error: "))
        raise RewardUnavailable(f"the reward service does not start; the last line of {self.log_path} is: {words}")

    def stop(self, timeout_s: float = 40.0) -> None:
        """SIGTERM (it drains), and SIGKILL after the deadline."""
        process = self._process
        if process is not None:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._keeper.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _spawn(self, port: int) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._endpoint.unlink(missing_ok=True)
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        config = self._config.model_copy(update={"port": port})
        settings = config.model_dump(mode="json")
        settings["redis"]["url"] = config.redis.resolved()  # a dump hides it
        handover = {"config": settings, "token": self.token.get_secret_value(), "endpoint": str(self._endpoint)}
        with self.log_path.open("ab") as log:
            # In a process group of its own: a Ctrl-C is for the driver, which needs the service for its last step.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rollcall.reward_service.service.private", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already; the caller sees the exit code
            self._process.stdin.write(json.dumps(handover).encode() + b"\n")
            self._process.stdin.flush()

    def _ready(self, deadline: float, look: Callable[[], None]) -> bool:
        """Waits until it is (True) or has ended (False)."""
        assert self._process is not None
        while self._process.poll() is None:
            look()
            if self._answers():
                return True
            if time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                return False
            time.sleep(_POLL_S)
        return False

    def _answers(self) -> bool:
        try:
            self._port = int(json.loads(self._endpoint.read_text())["port"])
            return httpx.get(f"{self.url}/readyz", timeout=1.0, trust_env=False).status_code == 200
        except (OSError, httpx.HTTPError):
            return False

    @property
    def _endpoint(self) -> Path:
        return self.directory / "reward_service.json"

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").split("\n") if self.log_path.exists() else []
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else "(empty)"


def start_private(
    config: ServiceConfig,
    directory: Path,
    look: Callable[[], None] = lambda: None,
    *,
    start_timeout_s: float = 300.0,
) -> PrivateService:
    """A service for this program alone, ready to be asked; its log and where it listens are in the directory. `look`,
    again and again while it starts, may end the wait by raising.

    Raises:
      BadInput: its settings cannot be used.
      RewardUnavailable: it does not become ready in time.
    """
    service = PrivateService(config, directory, start_timeout_s=start_timeout_s)
    try:
        service.start(look)
    except BaseException:
        service.stop()
        raise
    return service


def main(arguments: Sequence[str]) -> int:
    """The child."""
    _end_with(int(arguments[0]))
    handover = json.loads(sys.stdin.buffer.readline() or b"{}")
    if not handover:
        return _EXIT_BAD_INPUT  # the parent ended before it said anything
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        config = ServiceConfig.model_validate(handover["config"])
        os.environ.pop(TOKEN_VARIABLE, None)  # or every child of ours would inherit it
        with label_routers(config) as routers:
            open_paths = OPEN_PATHS if routers else ()
            server = Server(config, token=SecretStr(handover["token"]), routers=routers, open_paths=open_paths)
            _write_endpoint(Path(handover["endpoint"]), server.url)
            threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
            ended = server.run()
    except BadInput as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    leave_at_once_unless(ended)
    return 0


@contextlib.contextmanager
def label_routers(config: ServiceConfig) -> Iterator[list[APIRouter]]:
    """What serves the preferences, where the settings ask for it."""
    if config.labels is None:
        yield []
        return
    with open_labelling(config.labels, config.labelling) as store:
        yield [router(store)]


def _end_with(parent: int) -> None:
    """With the thread that started us, where the kernel offers it; it may have ended before we asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(_EXIT_BAD_INPUT)


def _end_with_input(server: Server) -> None:
    os.read(0, 1)  # nothing more is ever sent
    server.end()


def _write_endpoint(path: Path, url: str) -> None:
    content: dict[str, Any] = {"port": int(url.rpartition(":")[2]), "pid": os.getpid()}
    write_aside(path, json.dumps(content))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
