"""The code keys that are made and kept in DATA_DIR where none are set."""

from __future__ import annotations

import base64
import os
import secrets
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from service.embedded.data_dir import ensure, sync
from service.embedded.errors import BadEnvironment, one_line
from service.setting_values import KEY_BYTES, CodeKeys

if TYPE_CHECKING:
    from pathlib import Path

FILE = "code_keys"


def kept_keys(data_dir: Path) -> dict[str, bytes]:
    """Return the keys of DATA_DIR/code_keys, made at the first call; whoever calls at the same time gets the same.

    Raises BadEnvironment when the file cannot be written or does not hold keys: making new ones would kill every code
    that is on its way.
    """
    data_dir = ensure(data_dir)
    path = data_dir / FILE
    with one_line(path):
        if not path.exists():
            _make(path)
        text = path.read_text(encoding="ascii", errors="replace").strip()
    try:
        return TypeAdapter(CodeKeys).validate_python(text)
    except ValidationError:
        raise BadEnvironment(f"{path} does not hold keys as kid:base64,…: mend it or remove it") from None


def _make(path: Path) -> None:
    """Write aside, sync, then link: the file is whole when it appears, and the first of two makers wins."""
    new = path.with_name(f".{FILE}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"k1:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(new)
        except FileExistsError:
            return
    finally:
        new.unlink(missing_ok=True)
    sync(path.parent)
