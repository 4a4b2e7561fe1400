"""A coding model of the OpenAI protocol on a real port, which plays answers in the order in which they are asked for:
texts, or faults."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Fault:
    """An answer that is none: a status, a body, and what is said in the headers. It comes before the next answer."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class CodingServer:
    """`script`: its answers, one a request; the last one again and again. `before`: called with the number of the
    request before it is answered."""

    def __init__(
        self, script: Sequence[str | Fault], before: Callable[[int], None] = lambda number: None, *, port: int = 0
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._script, self._lock = list(script), threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    said = outer._script[min(number, len(outer._script) - 1)]
                before(number)
                fault = Fault(200, _completion(said)) if isinstance(said, str) else said
                raw = fault.body.encode()
                self.send_response(fault.status if self.path == "/v1/chat/completions" else 404)
                for name, value in (("Content-Length", str(len(raw))), *fault.headers):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A client that was killed is none of ours."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _completion(text: str) -> str:
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def answer(body: str, *, before: str = "") -> str:
    """An answer with a reward function of this body."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    head = "def compute_reward(observation, action, next_observation, terminated):"
    return f"I would try this.\n\n```python\n{before}{head}\n{lines}\n```\n"


UPRIGHT = """
up = 1.0 - abs(next_observation[2]) / 0.2095
centred = 0.5 * (1.0 - abs(next_observation[0]) / 2.4)
fallen = -5.0 if terminated else 0.0
return up + centred + fallen, {"up": up, "centred": centred, "fallen": fallen}
"""
FALLING = """
tilt = abs(next_observation[2])
return tilt, {"tilt": tilt}
"""
ENDLESS = """
while True:
    pass
"""
HOG = """
held = [bytearray(1 << 20) for _ in range(1 << 16)]
return 0.0, {"held": float(len(held))}
"""
SHELL = """
import os
os.system("touch /tmp/rollcall-was-here")
return 1.0, {"one": 1.0}
"""
# By way of what every object leads to, past the words that are left out: it reaches a shell's function, and no shell.
ESCAPE = """
found = [kind for kind in ().__class__.__base__.__subclasses__() if kind.__name__ == "_wrap_close"][0]
system = found.__init__.__globals__["system"]
status = system("touch MARK; kill -9 1") if terminated else 1
return 0.0, {"status": float(status != 0)}
"""
NAN = 'return float("nan"), {"none": 0.0}'
# Steps of random actions do not come here: it passes every look before training.
LATER = """
worth = 1.0 / (0.0 if abs(next_observation[0]) > 1.0 and observation[0] < 99 else 1.0)
return worth, {"worth": worth}
"""
NO_CODE = "I am sorry, I cannot help with that."
WRONG_SIGNATURE = "```python\ndef compute_reward(state):\n    return 1.0, {'one': 1.0}\n```"
