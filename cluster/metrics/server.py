"""A page at /metrics, on a thread of its own. Must never know what is on it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6

from prometheus_client import CONTENT_TYPE_LATEST

from rollcall.cluster.errors import BadInput

REQUEST_TIMEOUT_S = 10.0  # for a client that says nothing


class MetricsServer:
    """Serves until it is closed. `serve` makes one."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self.port = int(server.server_address[1])
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(page: Callable[[], bytes], *, host: str, ports: Sequence[int]) -> MetricsServer:
    """At the first of `ports` that is free; 0 is any.

    Raises:
      BadInput: none is free, or the host is not this machine's.
    """
    for port in ports:
        try:
            return MetricsServer(_bound(page, host.strip("[]"), port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise BadInput(f"metrics.host={host}: cannot be served on ({error.strerror})") from None
    raise BadInput(
        f"metrics.port={ports[-1]}: in use by another process; choose another, or leave it out for a free one"
    )


def _bound(page: Callable[[], bytes], host: str, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "only /metrics is served here")
                return
            body = page()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A scrape is not worth a line."""

    class Server(ThreadingHTTPServer):
        address_family = AF_INET6 if ":" in host else AF_INET
        daemon_threads = True

    return Server((host, port), Handler)
