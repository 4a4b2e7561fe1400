"""The gateway's HTTP server. The standard library's, with a thread per connection: actors are few, and what a thread
may hold is bounded."""

from __future__ import annotations

import logging
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from rollcall.actors.outside import protocol
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.gateway.handler import Handler, Served

SPARE_CONNECTIONS = 16  # beside two for each actor

_log = logging.getLogger("rollcall")


class Gateway:
    """Serves one run's desk."""

    def __init__(self, served: Served, *, address: tuple[str, int], max_actors: int) -> None:
        """Raises BadInput: when the address cannot be served on."""
        self._served = served
        try:
            self._server = _Server(address, served, max_connections=2 * max_actors + SPARE_CONNECTIONS)
        except (OSError, OverflowError) as error:
            raise BadInput(f"actors.outside.listen: {address[0]}:{address[1]} cannot be served on ({error})") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="gateway", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def serve(self, weights: Weights) -> None:
        """From now on these are the newest."""
        self._served.weights = (weights, protocol.weights_to_bytes(weights))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5.0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], served: Served, *, max_connections: int) -> None:
        self.served = served
        self._free = threading.BoundedSemaphore(max_connections)
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.served.count("connect", 503, "too_many_connections")
            request.settimeout(1.0)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a connection of an outside actor broke", exc_info=True)
