"""gymnasium's AsyncVectorEnv, an env in a process each, as we need it: every answer has a deadline, an env's own error
arrives with its traceback, and no process outlives the one that asked for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState

from rollcall.actors.envs.checked_env import CheckedEnv
from rollcall.actors.envs.contract import ContractError
from rollcall.actors.envs.vector import RemoteEnvError
from rollcall.cluster.errors import BadInput

_END_TIMEOUT_S = 5.0
_NOT_BEGUN = (
    "the processes of the envs ended before they began: each imports the script that was started, and what trains "
    "there must stand under `if __name__ == '__main__':` (anything else they said is above)"
)
_TOO_LONG = "too long a path for the sockets of other processes: set TMPDIR=/tmp, or env.vectorization=sync"


class AsyncEnvs(AsyncVectorEnv[Any, Any]):
    """gymnasium's AsyncVectorEnv, with the env's own traceback in what it raises, and a deadline for every answer."""

    def __init__(
        self, factories: Sequence[Callable[[], Any]], *, autoreset_mode: AutoresetMode, timeout_s: float
    ) -> None:
        # Not fork: this process has threads (torch's, Ray's), and a forked child may hang on their locks.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rollcall.actors.envs.environment"])
        self.timeout_s = timeout_s
        with tempfile.TemporaryDirectory(prefix="rollcall-envs-") as folder:
            last_words = Path(folder) / "error"
            env_fns = [partial(_in_its_own_process, factory, str(last_words)) for factory in factories]
            try:
                super().__init__(env_fns, context="forkserver", autoreset_mode=autoreset_mode, copy=False)
            except (EOFError, ConnectionError):  # the process of an env is gone
                for process in self.processes:
                    process.terminate()
                    process.join(_END_TIMEOUT_S)
                raise BadInput(last_words.read_text() if last_words.exists() else _NOT_BEGUN) from None
            except OSError as error:
                if "AF_UNIX path too long" in str(error):
                    raise BadInput(f"TMPDIR={tempfile.gettempdir()}: {_TOO_LONG}") from None
                raise

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.reset_async(seed=seed, options=options)
        self._wait_for_all("reset")
        return self.reset_wait()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.step_async(actions)
        self._wait_for_all("step")
        return self.step_wait()

    def _wait_for_all(self, call: str) -> None:
        if self._poll_pipe_envs(self.timeout_s):
            return
        self._state = AsyncState.DEFAULT
        late = [i for i, pipe in enumerate(self.parent_pipes) if not pipe.poll(0)]
        who = f"env {', '.join(map(str, late))}"
        raise RemoteEnvError(who, f"no answer to {call} within {self.timeout_s:.0f} s", "(it was still running)\n")

    def _raise_if_errors(self, successes: Sequence[bool]) -> None:  # type: ignore[override]
        if all(successes):
            return
        self._state = AsyncState.DEFAULT
        first = list(successes).index(False)
        try:
            index, kind, error, trace = self.error_queue.get(timeout=self.timeout_s)
        except Exception as problem:  # what the env raised could not be sent, or not be read
            raise RemoteEnvError(f"env {first}", f"an exception that cannot be pickled ({problem})", "") from None
        if issubclass(kind, ContractError):
            raise RemoteEnvError(f"env {index}", str(error), trace, contract=True)
        raise RemoteEnvError(f"env {index}", f"{kind.__name__}: {error}", trace)


def _in_its_own_process(factory: Callable[[], Any], last_words: str) -> Any:
    """An env that ends with the process that asked for it, even in the middle of a step that never ends. (A worker that
    waits for its next command sees the pipe close.) gymnasium also calls this once where the group is built."""
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith("Worker<AsyncEnvs>"):
        return CheckedEnv(factory())

    def end_with_parent() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        return CheckedEnv(factory())
    except BaseException as error:  # gymnasium's worker would end without a word to whoever waits for it
        Path(last_words).write_text(str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
