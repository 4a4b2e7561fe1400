"""Seeds derived from a run seed and names, so that no random stream depends on timing, on the number of actors, or on
how often something was tried. Must never look at a clock or at global random state."""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names` of the run `run_seed`: SHA-256 of both, so streams are independent.

    Non-negative and below 2**63: fits torch, numpy and Redis integers.
    """
    text = "/".join(["rollcall", str(run_seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
