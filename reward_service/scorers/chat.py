"""Questions to a language model that serves the OpenAI protocol (vLLM does), each with a deadline that the whole answer
has to keep: one that drips, never ends or is none is a failure in one line. Must never know what is asked."""

from __future__ import annotations

import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from rollcall.cluster.backoff import Backoff
from rollcall.reward_service.protocol import ItemErrorKind
from rollcall.reward_service.scorer import Failure

KEY_VARIABLE = "ROLLCALL_JUDGE_KEY"
MOST_BYTES = 4 << 20  # of an answer
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 8.0
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

Messages = list[dict[str, str]]


class Endless(Exception):
    """An answer of more than MOST_BYTES."""


class NoReply(Exception):
    """Why there is none."""

    def __init__(self, kind: ItemErrorKind, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


class Chat:
    """A client of one model. Threads may share one. Its key, if the server wants one, is in the environment."""

    def __init__(
        self, *, url: str, model: str, timeout_s: float, tries: int, concurrency: int, who: str = "judge"
    ) -> None:
        """`url`: up to /v1. `timeout_s`: of one request. `who`: what messages call the model."""
        self._url, self._model, self._timeout_s, self._tries, self._who = url, model, timeout_s, tries, who
        self._client = client_of(url, os.environ.get(KEY_VARIABLE, ""), connections=concurrency)

    def ask(self, messages: Messages, *, deadline: float, **settings: object) -> dict[str, Any]:
        """The first choice of the reply; tried again while that may help and there is time.

        Args:
          deadline: monotonic, of all tries.
          settings: of the request, as max_tokens.

        Raises:
          NoReply: there is none.
        """
        body = {"model": self._model, "messages": messages, **settings}
        who, url = self._who, self._url
        backoff = Backoff(deadline, first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
        problem = NoReply("timeout", f"no time was left to ask the {who} at {url}")
        for _ in range(self._tries):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            again_s = 0.0
            try:
                status, headers, content = completion(self._client, body, timeout_s=min(left_s, self._timeout_s))
                if status == 200:
                    return self._first_choice(content)
                problem = self._refusal(status, content)
                if status not in PASSING:
                    raise problem
                again_s = retry_after_s(headers)
            except Endless:
                raise NoReply("scorer_failed", f"the answer of the {who} at {url} has no end") from None
            except httpx.TimeoutException:
                problem = NoReply("timeout", f"the {who} at {url} did not answer in time ({who}.timeout_s)")
            except httpx.HTTPError as error:
                problem = NoReply("unavailable", f"the {who} at {url} is away: {error}")
            if not backoff.wait(again_s):
                break
        raise problem

    def close(self) -> None:
        self._client.close()

    def _first_choice(self, content: bytes) -> dict[str, Any]:
        try:
            return first_choice(content)
        except ValueError as error:
            raise NoReply("scorer_failed", f"the {self._who}'s {error}") from None

    def _refusal(self, status: int, content: bytes) -> NoReply:
        who, url = self._who, self._url
        if status in (401, 403):
            return NoReply("unavailable", f"the {who} at {url} refuses the key in ${KEY_VARIABLE} ({status})")
        said = " ".join(content.decode(errors="replace").split())[:200]
        kind: ItemErrorKind = "unavailable" if status in (404, *PASSING) else "scorer_failed"
        return NoReply(kind, f"the {who} at {url} said {status}: {said}")


def client_of(url: str, key: str, *, connections: int) -> httpx.Client:
    """For `completion`. `url`: up to /v1. `key`: of the server; empty: it wants none."""
    return httpx.Client(
        base_url=url.rstrip("/") + "/",
        headers={"Authorization": f"Bearer {key}"} if key else {},
        limits=httpx.Limits(max_connections=connections),
        verify=url.startswith("https"),  # else the certificates are read for nothing
        trust_env=urlsplit(url).hostname not in _LOOPBACK,  # no proxy stands before this machine
    )


def completion(client: httpx.Client, body: dict[str, Any], *, timeout_s: float) -> tuple[int, httpx.Headers, bytes]:
    """(status, headers, content) of one request. httpx's own timeout is of each read: a server that sends a byte now
    and then would keep it for ever.

    Raises:
      httpx.HTTPError: no answer in time, or no connection.
      Endless: the answer is too long.
    """
    until, content = time.monotonic() + timeout_s, bytearray()
    with client.stream("POST", "chat/completions", json=body, timeout=timeout_s) as answer:
        for part in answer.iter_bytes():
            content += part
            if time.monotonic() > until:
                raise httpx.ReadTimeout("the answer did not end in time")
            if len(content) > MOST_BYTES:
                raise Endless
        return answer.status_code, answer.headers, bytes(content)


def first_choice(content: bytes) -> dict[str, Any]:
    """Of an answer. Raises ValueError: it is none of the protocol."""
    try:
        choice = json.loads(content)["choices"][0]
        if isinstance(choice["message"], dict):
            return dict(choice)
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    said = content[:200].decode(errors="replace")
    raise ValueError(f"answer is not of the OpenAI protocol: {said!r}")


def text_of(choice: dict[str, Any]) -> str:
    """What a choice says; empty where it says nothing, or no text."""
    content = choice["message"].get("content")
    return content if isinstance(content, str) else ""


def retry_after_s(headers: httpx.Headers) -> float:
    try:
        return max(0.0, float(headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0
