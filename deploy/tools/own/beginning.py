"""`rollcall new`: a file that works as it is, and a test beside it."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.settings import COMMAND_LINE
from rollcall.deploy.tools.own.templates import TEMPLATES


def write_new(what: str, name: str, folder: Path) -> list[Path]:
    """Writes NAME.py (or NAME.yaml) and test_NAME.py, and returns both. Nothing that is there is written over.

    Raises:
      BadInput: for a name that no module can have, and where a file is in the way.
    """
    ending, text, test = TEMPLATES[what]
    module = name.removesuffix(ending).replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise BadInput(f"{name!r} ({COMMAND_LINE}): give small letters, digits and _, beginning with a letter")
    if ending == ".py" and module in sys.stdlib_module_names:
        raise BadInput(f"{name!r} ({COMMAND_LINE}): Python has a module of that name: choose another one")
    paths = [folder / f"{module}{ending}", folder / f"test_{module}.py"]
    for path in paths:
        if path.exists():
            raise BadInput(f"{path} is there already: choose another name, or remove it")
    words = {"NAME": module, "CLASS": "".join(part.capitalize() for part in module.split("_")), "FILE": module}
    try:
        for path, content in zip(paths, (text, test), strict=True):
            path.write_text(re.sub(r"\b(NAME|CLASS|FILE)\b|NAME(?=\.|:)", lambda found: words[found[0]], content))
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from None
    return paths
