"""How the sandbox's helper is started: `python -I -S -B jail_main.py`, without site-packages. Lets it find its siblings
under their own names, and nothing else of ours; must stay free of anything but that."""

from __future__ import annotations

import os
import sys
import types

if __name__ == "__main__":
    _HERE = os.path.dirname(os.path.realpath(__file__))
    for _name in ("rollcall", "rollcall.reward_service", "rollcall.reward_service.sandbox"):
        _package = types.ModuleType(_name)
        _package.__path__ = [_HERE] if _name.endswith("sandbox") else []
        sys.modules[_name] = _package
    from rollcall.reward_service.sandbox.jail import main

    main()
