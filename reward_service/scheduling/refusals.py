"""Why a request has no result: one kind, one status, and when to come again. guard.py and app.py make it an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

RefusalKind = Literal[
    "malformed",  # the body is no JSON
    "schema",  # it is, but not what the schema asks for
    "unauthorised",
    "forbidden",
    "unknown_model",
    "not_found",
    "method_not_allowed",
    "body_timeout",
    "too_large",
    "too_many_items",
    "too_many_tokens",
    "load_conflict",
    "load_failed",
    "queue_full",
    "loading",
    "draining",
    "stuck",
    "deadline",
    "client_gone",
    "internal",
]

_KINDS: Mapping[int, tuple[RefusalKind, ...]] = {
    401: ("unauthorised",),
    403: ("forbidden",),
    404: ("unknown_model", "not_found"),
    405: ("method_not_allowed",),
    408: ("body_timeout",),
    409: ("load_conflict",),
    413: ("too_large", "too_many_items", "too_many_tokens"),
    422: ("malformed", "schema", "load_failed"),
    429: ("queue_full",),
    499: ("client_gone",),  # nobody reads it; it is counted
    500: ("internal",),
    503: ("loading", "draining", "stuck"),
    504: ("deadline",),
}
STATUS: Mapping[RefusalKind, int] = {kind: status for status, kinds in _KINDS.items() for kind in kinds}


class Refused(Exception):
    """Ends a request. `retry_after_s` is for those that may succeed later."""

    def __init__(self, kind: RefusalKind, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.kind: RefusalKind = kind
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        return STATUS[self.kind]
