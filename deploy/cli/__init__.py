"""The command line. Imports what it needs when a command is called."""

from __future__ import annotations

import gc
import sys
from typing import NoReturn


def console() -> NoReturn:
    """The entry point of the `rollcall` script. A Ctrl-C while its first imports go on is one line, too."""
    try:
        from rollcall.deploy.cli.main import main
    except KeyboardInterrupt:
        print("rollcall: error: interrupted", file=sys.stderr)
        sys.exit(1)
    code = main()
    gc.freeze()  # or Python, at its end, looks for circles in all that was imported: a second
    sys.exit(code)
