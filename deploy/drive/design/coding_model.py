"""The language model that writes rewards, behind HTTP: a server of the OpenAI protocol. One request is one answer; what
may pass is tried again until the patience is over, with a line for whoever watches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

import httpx

from rollcall.cluster.backoff import Backoff
from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.deploy.config.recipe.design_config import DesignConfig
from rollcall.reward_service.scorers.chat import (
    PASSING,
    Endless,
    client_of,
    completion,
    first_choice,
    retry_after_s,
    text_of,
)

Messages = Sequence[Mapping[str, str]]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
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
        self._client = client_of(config.url, self._key, connections=config.candidates)

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
                timeout_s = max(0.1, min(rest_s, config.timeout_s))
                status, headers, content = completion(self._client, body, timeout_s=timeout_s)
                if status == 200:
                    return self._text(content)
                problem, again_s = self._refusal(status, content), retry_after_s(headers)
            except Endless:
                raise NoUse("the answer has no end") from None
            except httpx.TimeoutException:
                problem = f"no answer within {config.timeout_s:g} s (design.timeout_s)"
            except httpx.HTTPError as error:
                problem = f"away ({self._shown(str(error) or type(error).__name__)})"
            self._tell(f"the model at {config.url}: {problem}; tried again")
            if not backoff.wait(again_s):
                raise RollcallError(f"the model at {config.url}: {problem}: design.patience_s={config.patience_s:g}")
        raise NotAsked

    def _text(self, content: bytes) -> str:
        try:
            text = text_of(first_choice(content))
        except ValueError as error:
            raise NoUse(f"the {self._shown(str(error))}") from None
        if not text.strip():
            raise NoUse("the answer is empty")
        return text[:_MAX_ANSWER].encode(errors="replace").decode()  # half a character cannot be written down

    def _refusal(self, status: int, content: bytes) -> str:
        """What is wrong. Raises RollcallError: asking again would not help."""
        url = self._config.url
        text = f"it said {status}: {self._shown(content.decode(errors='replace'))}"
        if status in PASSING:
            return text
        remedy = "fix design.url, design.model or the request's settings"
        if status in (401, 403):
            variable = self._config.key_variable
            remedy = f"fix the key in ${variable}" if variable else "name the variable of a key in design.key_variable"
        raise RollcallError(f"the model at {url}: {text}: {remedy}")

    def _shown(self, text: str) -> str:
        """A short line, without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:_SHOWN]
