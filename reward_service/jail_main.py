"""How the sandbox's helper is started: `python -I -S -B jail_main.py`, without site-packages. Lets it find its siblings
under their own names, and nothing else of ours; must stay free of anything but that."""

from __future__ import annotations

import os
import sys
import types

if __name__ == "__main__":
    for _name, _path in (("rollcall", []), ("rollcall.reward_service", [os.path.dirname(os.path.realpath(__file__))])):
        _package = types.ModuleType(_name)
        _package.__path__ = _path
        sys.modules[_name] = _package
    from rollcall.reward_service.jail import main

    main()
