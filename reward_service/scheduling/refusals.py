"""Why a request has no result: one kind, one status, and when to come again. Must never know HTTP's machinery: guard.py
and app.py turn it into an answer."""

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

STATUS: Mapping[RefusalKind, int] = {
    "malformed": 422,
    "schema": 422,
    "unauthorised": 401,
    "forbidden": 403,
    "unknown_model": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "too_large": 413,
    "too_many_items": 413,
    "too_many_tokens": 413,
    "load_conflict": 409,
    "load_failed": 422,
    "queue_full": 429,
    "loading": 503,
    "draining": 503,
    "stuck": 503,
    "deadline": 504,
    "client_gone": 499,  # nobody reads it; it is counted
    "internal": 500,
}


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
