"""Python's collector while much is made that stays."""

from __future__ import annotations

import gc
import subprocess
import sys

CODE = """
import gc
from rollcall.deploy.runtimes.uncollected import uncollected
before = [each["collections"] for each in gc.get_stats()]
with uncollected():
    kept = [[] for _ in range(1_000_000)]
    assert not gc.isenabled()
assert [each["collections"] for each in gc.get_stats()] == before
assert gc.isenabled() and gc.get_freeze_count() > 1_000_000 and not any(kept)
gc.disable()
with uncollected():
    pass
assert not gc.isenabled()
"""


def test_it_rests_and_does_not_look_at_what_was_made_meanwhile_again() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=60)
    assert gc.isenabled()
