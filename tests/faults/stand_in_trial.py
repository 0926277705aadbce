"""The trial of the stand-in's reload: fails, with one line, for settings that cannot be read."""

from __future__ import annotations

import os
import sys

from service.settings import BadSettings, read

if __name__ == "__main__":
    try:
        read(os.environ)
    except BadSettings as error:
        sys.exit(f"vestibule: {error}")
