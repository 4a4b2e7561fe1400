"""A server of the OpenAI protocol on a real port, whose replies a test writes: it plays judges and critics with
opinions, with a bias, without sense, and ones that fail in every way we know."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], Any]


class JudgeServer:
    """Answers POST /v1/chat/completions by `reply`: a text, a whole choice, or (status, headers, body)."""

    def __init__(self) -> None:
        self.reply: Reply = lambda body: "Grade: 5"
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    said = outer.reply(body) if self.path == "/v1/chat/completions" else (404, {}, "no such path")
                finally:
                    with outer._lock:
                        outer.at_once -= 1
                status, headers, text = said if isinstance(said, tuple) else (200, {}, _completion(said))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if "Drip" in headers:  # a byte now and then: no read of it takes long
                    for byte in text.encode():
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.05)
                else:
                    self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A client that has given up is none of ours."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def _completion(said: Any) -> str:
    choice = said if isinstance(said, dict) else {"index": 0, "message": {"role": "assistant", "content": said}}
    return json.dumps({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]})


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def shown(body: dict[str, Any], name: str) -> str:
    """What stands between the delimiters of that name."""
    found = re.search(rf"\[begin {name} (\w+)\]\n(.*?)\n\[end {name} \1\]", asked(body), re.DOTALL)
    assert found is not None, asked(body)
    return found[2]
