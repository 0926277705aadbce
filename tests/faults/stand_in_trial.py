"""The trial of the stand-in's reload: fails, with one line, for settings that cannot be read.

While the file `spoil` is there, settings that were good are bad a moment later, when the new program reads them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from service.settings import BadSettings, read

if __name__ == "__main__":
    try:
        read(os.environ)
    except BadSettings as error:
        sys.exit(f"vestibule: {error}")
    folder = Path(os.environ["STAND_IN_FOLDER"])
    if folder.joinpath("spoil").exists():
        folder.joinpath("cost").write_text("99", encoding="utf-8")
