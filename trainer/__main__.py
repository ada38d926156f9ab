"""``python -m trainer``: train, watch and use few-step video LoRAs from the command line."""

from __future__ import annotations

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
