"""What the processes of one machine say to each other stays on it: gloo and NCCL listen on its loopback interface."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_INTERFACE = "lo" if sys.platform == "linux" else "lo0"
INTERFACES = {"GLOO_SOCKET_IFNAME": _INTERFACE, "NCCL_SOCKET_IFNAME": _INTERFACE}


@contextmanager
def where_unset(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process's environment, for it and for whoever it starts meanwhile. What somebody has set stays
    as it is; the others are gone afterwards, for another run of this process may have learners on several machines."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
