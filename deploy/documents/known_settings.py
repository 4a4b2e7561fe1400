"""Writes deploy/config/catalogue/known_settings.json from the models that hold the settings: `make generate`."""

from __future__ import annotations

import sys

from rollcall.deploy.config.catalogue.explaining import all_settings
from rollcall.deploy.config.catalogue.known_settings import FILE


def main() -> int:
    text = all_settings()
    if not FILE.exists() or FILE.read_text(encoding="utf-8") != text:
        FILE.write_text(text, encoding="utf-8")
        print(FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
