"""How the sandbox's helper is started: `python -I -S -B start.py ROLES`, without site-packages. Lets the helper find
its siblings under their own names, and nothing else of ours. ROLES is the sibling that says what runs inside."""

from __future__ import annotations

import importlib
import os
import sys
import types

_PACKAGE = "rollcall.reward_service.sandbox"

if __name__ == "__main__":
    for _name in ("rollcall", "rollcall.reward_service", _PACKAGE):
        _package = types.ModuleType(_name)
        _package.__path__ = [os.path.dirname(os.path.realpath(__file__))] if _name == _PACKAGE else []
        sys.modules[_name] = _package
    importlib.import_module(f"{_PACKAGE}.helper").main(importlib.import_module(f"{_PACKAGE}.{sys.argv[1]}").ROLES)
