"""One service as a process: socket, event loop, models, draining, end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn
from fastapi import APIRouter
from pydantic import SecretStr, TypeAdapter
from starlette.types import Receive, Scope, Send

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.scheduling.cache import open_cache
from rollcall.reward_service.scheduling.dispatcher import Dispatcher
from rollcall.reward_service.scheduling.metrics import ServiceMetrics
from rollcall.reward_service.scheduling.registry import Makers, Registry
from rollcall.reward_service.scorers.building import build_scorer
from rollcall.reward_service.scorers.scorer_config import ScorerConfig
from rollcall.reward_service.service.app import DOCUMENT_PATHS, HEALTH_PATHS, METRICS_PATH, Routes, create_app
from rollcall.reward_service.service.auth import TOKEN_VARIABLE, BearerToken, find_token, is_loopback
from rollcall.reward_service.service.guard import Guard
from rollcall.reward_service.service.service_config import ServiceConfig

_GRACE_S = 5  # for connections, after the work is done
_POLL_S = 0.02

_log = logging.getLogger(__name__)


class Server:
    """Bound when it is made; `run` serves until it is told to end."""

    def __init__(
        self,
        config: ServiceConfig,
        *,
        token: SecretStr | None = None,
        makers: Makers | None = None,
        routers: Sequence[APIRouter] = (),
        open_paths: Sequence[str] = (),
    ) -> None:
        """`token` is found by the configuration unless it is given. `routers` are further parts of the service, and
        `open_paths` those of their pages that are served without the token.

        Raises:
          BadInput: the address cannot be had, or it is not loopback and there is no token.
        """
        self.config = config
        self._token = token if token is not None else find_token(config.token_file)
        if self._token is None and not is_loopback(config.host):
            raise BadInput(
                f"host = {config.host!r}: beyond loopback a token is needed: set ${TOKEN_VARIABLE}, or token_file"
            )
        self._makers = makers or Makers(lambda config, _: build_scorer(config), reward_model_at)
        self._routers, self._open_paths = routers, open_paths
        self._socket = _bind(config.host, config.port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where clients of this machine find it."""
        host, port = self._socket.getsockname()[:2]
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self, *, signals: bool = True) -> bool:
        """Serves until SIGTERM, Ctrl-C or `end`. False where a model would not stop computing: then
        `leave_at_once_unless` ends the process.

        Raises:
          BadInput: a model of the configuration cannot be built.
        """
        uvicorn_config = uvicorn.Config(
            app=_nothing,
            log_config=None,
            access_log=False,
            lifespan="off",
            http="h11",  # the one that bounds a request's head
            ws="none",
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=self.config.connections.max_header_bytes,
            limit_concurrency=self.config.connections.max_connections,
            timeout_keep_alive=self.config.connections.keep_alive_s,
            timeout_graceful_shutdown=_GRACE_S,
        )
        with asyncio.Runner(loop_factory=uvicorn_config.get_loop_factory()) as runner:
            return runner.run(self._run(uvicorn_config, signals))

    def end(self) -> None:
        """From any thread: drains, then ends."""
        loop, ending = self._loop, self._ending
        if loop is not None and ending is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(ending.set)

    async def _run(self, uvicorn_config: uvicorn.Config, signals: bool) -> bool:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        metrics = ServiceMetrics()
        registry, dispatcher, guard = await self._assembled(metrics)
        uvicorn_config.app = guard
        server = _Uvicorn(uvicorn_config)
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._on_signal, server)
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        building = asyncio.create_task(registry.build_all())
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait({serving, building, ending}, return_when=asyncio.FIRST_COMPLETED)
            if building.done():
                building.result()
                await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain(guard, server)
        finally:
            building.cancel()
            ending.cancel()
            server.should_exit = True
            await serving
            await dispatcher.close()
        return registry.close(_GRACE_S)

    async def _assembled(self, metrics: ServiceMetrics) -> tuple[Registry, Dispatcher, Guard]:
        config = self.config
        cache = await open_cache(config.cache, config.redis.resolved(), metrics)

        registry = Registry(
            config.models,
            self._makers,
            default=config.default_model,
            roots=config.model_roots,
            batching=config.batching,
            metrics=metrics,
            finished=lambda finished: dispatcher.finish(finished),
        )
        dispatcher = Dispatcher(registry, cache, config.requests, metrics)
        routes = Routes(dispatcher, registry, metrics)
        open_metrics = [METRICS_PATH] if config.open_metrics else []
        guard = routes.guard = Guard(
            create_app(routes, more=self._routers),
            config=config.intake,
            metrics=metrics,
            token=None if self._token is None else BearerToken(self._token),
            open_paths=[*HEALTH_PATHS, *DOCUMENT_PATHS, *open_metrics, *self._open_paths],
        )
        return registry, dispatcher, guard

    def _on_signal(self, server: uvicorn.Server) -> None:
        """The first one asks for an end, a second one for a quick one."""
        assert self._ending is not None
        if self._ending.is_set():
            server.force_exit = True
        self._ending.set()

    async def _drain(self, guard: Guard, server: uvicorn.Server) -> None:
        """New work is refused while what is under way ends. The socket stays open: who comes is told."""
        guard.draining = True
        deadline = time.monotonic() + self.config.drain_timeout_s
        while guard.num_requests and time.monotonic() < deadline and not server.force_exit:
            await asyncio.sleep(_POLL_S)
        if guard.num_requests:
            _log.warning("%d requests were under way at the end and are given up", guard.num_requests)


def leave_at_once_unless(ended: bool) -> None:
    """After `Server.run` and whatever is closed behind it: a model that still computes does so in a thread that does
    not survive the interpreter's end."""
    if not ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: its own handlers close the socket at once, and end the process by the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the application is set before the first request")


def reward_model_at(old: ScorerConfig | None, path: Path) -> ScorerConfig:
    """The settings of the model that it replaces, with another path; the defaults where it is new."""
    settings = {"kind": "reward_model"} if old is None else old.model_dump()
    adapter: TypeAdapter[ScorerConfig] = TypeAdapter(ScorerConfig)
    return adapter.validate_python({**settings, "path": str(path)})


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(1024)  # now, so that a second service is refused the address
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BadInput(f"port = {port}: in use on {host}; choose another, or 0 for a free one") from None
        raise BadInput(f"host = {host!r}, port = {port}: cannot be served on ({error.strerror or error})") from None
    return listener
