"""The bearer token: where it comes from, and whether a request has it. Must never let it into a log, a repr or a
process list."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from rollcall.cluster.errors import BadInput

TOKEN_VARIABLE = "ROLLCALL_REWARD_TOKEN"
TOKEN_FILE_VARIABLE = "ROLLCALL_REWARD_TOKEN_FILE"


def find_token(token_file: Path | None) -> SecretStr | None:
    """From the file if there is one, else from the environment, which it then leaves: children do not inherit it.

    Raises:
      BadInput: the file cannot be read, others may read it, or there is no token in it.
    """
    given = os.environ.pop(TOKEN_VARIABLE, None)
    if token_file is None:
        if given is not None and not given.strip():
            raise BadInput(f"${TOKEN_VARIABLE} is set and empty: give it a token, or unset it")
        return None if given is None else SecretStr(given.strip())
    try:
        status = token_file.stat()
        # Kubernetes hands a secret to a pod as root's file, which the pod's group may read: no other owner could do it.
        others = 0o077 if status.st_uid == os.geteuid() else 0o037
        if stat.S_IMODE(status.st_mode) & others:
            raise BadInput(f"token_file {token_file} can be used by others: chmod 600 {token_file}")
        text = token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"token_file {token_file} cannot be read ({error}): give a file that holds the token") from None
    if not text or len(text.split()) != 1:
        raise BadInput(f"token_file {token_file} holds no token: one line without spaces is needed")
    return SecretStr(text)


def client_token() -> str:
    """Of a service that runs elsewhere: from the file that $ROLLCALL_REWARD_TOKEN_FILE names, else from
    $ROLLCALL_REWARD_TOKEN; empty without either.

    Raises:
      BadInput: as find_token.
    """
    path = os.environ.get(TOKEN_FILE_VARIABLE)
    if not path:
        return os.environ.get(TOKEN_VARIABLE, "")
    token = find_token(Path(path))
    return "" if token is None else token.get_secret_value()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class BearerToken:
    """Compares in constant time: digests of equal length, whatever is given."""

    def __init__(self, token: SecretStr) -> None:
        self._digest = _digest(token.get_secret_value().encode())

    def __repr__(self) -> str:
        return "BearerToken(...)"

    def accepts(self, authorization: bytes) -> bool:
        """The value of an Authorization header."""
        scheme, _, given = authorization.partition(b" ")
        return hmac.compare_digest(_digest(given.strip()), self._digest) and scheme.lower() == b"bearer"


def same_origin(origin: bytes, host: bytes) -> bool:
    """Whether a page that sends a request was served by us. Requests that no page sends have no Origin."""
    return urlsplit(origin.decode("latin-1")).netloc.lower() == host.decode("latin-1").lower()


def named_locally(host: bytes) -> bool:
    """Whether a Host header says loopback: a page elsewhere may have had its name point here."""
    try:
        name = urlsplit(f"//{host.decode('latin-1')}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
