"""Texts for people and for logs, without the passwords of addresses in them."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(//[^/@:\s]*):[^/@\s]*@")


def without_passwords(text: str) -> str:
    """`http://me:secret@host` as `http://me:***@host`. What a client raises may have all of the address in it."""
    return _PASSWORD.sub(r"\1:***@", text)
