"""The language model that writes rewards, behind HTTP: a server of the OpenAI protocol. One request is one answer; what
may pass is tried again until the patience is over, with a line for whoever watches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from rollcall.cluster.backoff import Backoff
from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.deploy.config.design_config import DesignConfig

Messages = Sequence[Mapping[str, str]]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_SHOWN = 200  # characters of what a server says
_MAX_ANSWER = 200_000  # characters that are kept


class NotAsked(Exception):
    """A stop was requested before there was an answer."""


class NoUse(Exception):
    """There is an answer, and nothing in it; the message says in one line what it is."""


class CodingModel:
    """Safe for use from several threads."""

    def __init__(self, config: DesignConfig, tell: Callable[[str], None], stop_requested: Callable[[], bool]) -> None:
        """`tell`: told, from whatever thread, why something is tried again.

        Raises:
          BadInput: when the variable of the key holds none.
        """
        self._config, self._tell, self._stop_requested = config, tell, stop_requested
        self._key = ""
        if config.key_variable is not None:
            self._key = os.environ.get(config.key_variable, "").strip()
            if not self._key:
                raise BadInput(f"design.key_variable = {config.key_variable!r}: no key in this environment variable")
        self._client = httpx.Client(
            base_url=config.url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=config.timeout_s,
            verify=config.url.startswith("https"),  # else the certificates are read for nothing
        )

    def close(self) -> None:
        self._client.close()

    def answer(self, messages: Messages) -> str:
        """What the model says.

        Raises:
          NoUse: it answered, with what is no text.
          NotAsked: a stop was requested meanwhile.
          RollcallError: it does not answer within the patience, or refuses.
        """
        config = self._config
        body = {
            "model": config.model,
            "messages": list(messages),
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        deadline = time.monotonic() + config.patience_s
        backoff = Backoff(deadline, first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
        while not self._stop_requested():
            rest_s = deadline - time.monotonic()
            again_s = 0.0
            try:
                said = self._client.post("chat/completions", json=body, timeout=max(0.1, min(rest_s, config.timeout_s)))
                if said.status_code == 200:
                    return self._text(said)
                problem, again_s = self._refusal(said)
            except httpx.TimeoutException:
                problem = f"no answer within {config.timeout_s:g} s (design.timeout_s)"
            except httpx.HTTPError as error:
                problem = f"away ({self._shown(str(error) or type(error).__name__)})"
            self._tell(f"the model at {config.url}: {problem}; tried again")
            if not backoff.wait(again_s):
                raise RollcallError(f"the model at {config.url}: {problem}: design.patience_s={config.patience_s:g}")
        raise NotAsked

    def _text(self, said: httpx.Response) -> str:
        try:
            content: Any = said.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise NoUse(f"the answer is not of the OpenAI protocol: {self._shown(said.text)!r}") from None
        if not isinstance(content, str) or not content.strip():
            raise NoUse("the answer is empty")
        return content[:_MAX_ANSWER].encode(errors="replace").decode()  # half a character cannot be written down

    def _refusal(self, said: httpx.Response) -> tuple[str, float]:
        """What is wrong, and for how many seconds at least not to ask again.

        Raises:
          RollcallError: asking again would not help.
        """
        url, status = self._config.url, said.status_code
        text = f"it said {status}: {self._shown(said.text)}"
        if status in _PASSING:
            return text, _retry_after_s(said)
        remedy = "mend design.url, design.model or the request's settings"
        if status in (401, 403):
            variable = self._config.key_variable
            remedy = f"mend the key in ${variable}" if variable else "name the variable of a key in design.key_variable"
        raise RollcallError(f"the model at {url}: {text}: {remedy}")

    def _shown(self, text: str) -> str:
        """A short line, without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:_SHOWN]


def _retry_after_s(said: httpx.Response) -> float:
    try:
        return max(0.0, float(said.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0
