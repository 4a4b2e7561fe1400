"""What libraries read from the environment as they are loaded, for the processes of a run. Imports none of them."""

from __future__ import annotations

import os

SETTINGS = {
    # Threads that wait for each other by turning round take whole time slices from each other where cores are shared:
    # a step of a warm start with two threads took 0.04 s instead of 1 to 13 s beside other work.
    "GOMP_SPINCOUNT": "300",
    # Large tensors on huge pages where the system has them for who asks. What a gradient step allocates is given back
    # after it and faulted in again by the next: 11,000 pages of 4 KiB for 256 Atari frames, a fifth of its time.
    "THP_MEM_ALLOC_ENABLE": "1",
}


def set_for_libraries() -> None:
    """Before they are loaded. Child processes, a private Ray cluster's too, inherit it; what is set already stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
