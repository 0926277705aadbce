"""What runs in a folder, read from /proc; nothing where there is none."""

from __future__ import annotations

from pathlib import Path


def inside(folder: Path) -> dict[int, str]:
    """Return the pid and command line of each process that we may look at and whose working folder this is."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(entry.name)] = title
        except OSError:  # it has ended, or it is somebody else's
            continue
    return {pid: title for pid, title in found.items() if title}
