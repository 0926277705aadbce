"""Where the servers are: the URLs that are set, the embedded ones of `vestibule up`, or those of an `up` that runs."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.embedded.data_dir import BadEnvironment, kept_keys, one_line, private
from service.embedded.mail_catcher import MailCatcher
from service.embedded.postgres import EmbeddedPostgres
from service.embedded.redis import EmbeddedRedis
from service.processes.listener import pid_file_holder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from service.embedded.launcher import ServerProcess
    from service.settings import Settings

FILE = "servers.json"
URLS = ("database_url", "redis_url", "mail_url")
CONNECTIONS_A_PROCESS = 8  # one for each of 4 threads, and as many again beside it during a reload
SPARE_CONNECTIONS = 40  # for operators, migrations and tests
FEWEST_CONNECTIONS = 100


class ServersMissing(BadEnvironment):
    """A URL is not set and no `vestibule up` runs in DATA_DIR; the text names both."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers are, after settings and embedded defaults have been resolved; the URLs may hold passwords."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    mail_url: str = field(repr=False)
    code_keys: Mapping[str, bytes] = field(repr=False)


def embedded(settings: Settings) -> list[ServerProcess]:
    """Return what `up` has to start for the URLs that are not set, in the order of the start; starts nothing."""
    workers = CONNECTIONS_A_PROCESS * (settings.workers + settings.mail_workers)
    connections = max(FEWEST_CONNECTIONS, workers + SPARE_CONNECTIONS)
    data_dir = settings.data_dir
    processes = EmbeddedPostgres(data_dir, connections), EmbeddedRedis(data_dir), MailCatcher(data_dir)
    return [process for process in processes if getattr(settings, process.setting) is None]


def gather(settings: Settings, others: Mapping[str, str]) -> Servers:
    """Return where all servers are: as set, else at these URLs, by the names of their settings."""
    urls = {name: plain(getattr(settings, name)) or others[name] for name in URLS}
    return Servers(**urls, code_keys=code_keys(settings))


def announce(settings: Settings, servers: Servers, supervisor: int) -> None:
    """Tell other commands where the servers of this `up` are, for as long as its supervisor runs."""
    path = settings.data_dir / FILE
    with one_line(path), open(path, "w", encoding="utf-8", opener=private) as file:
        json.dump({"supervisor": supervisor, **{name: getattr(servers, name) for name in URLS}}, file)


def resolve(settings: Settings) -> Servers:
    """Return where the servers are: as set, else as a running `up` in DATA_DIR has announced; raises ServersMissing."""
    missing = [name for name in URLS if getattr(settings, name) is None]
    others: dict[str, Any] = {}
    if missing:
        with suppress(OSError, ValueError):
            others = json.loads((settings.data_dir / FILE).read_text(encoding="utf-8"))
        if not others or others.pop("supervisor") != pid_file_holder(settings.data_dir):  # its servers are gone too
            names = ", ".join(f"VESTIBULE_{name.upper()}" for name in missing)
            raise ServersMissing(f"no {names} and no running `vestibule up` in {settings.data_dir}")
    return gather(settings, others)


def code_keys(settings: Settings) -> Mapping[str, bytes]:
    """Return the keys that codes are derived from: as set, else kept in DATA_DIR; raises BadEnvironment."""
    return settings.code_keys if settings.code_keys is not None else kept_keys(settings.data_dir)


def plain(url: SecretStr | None) -> str | None:
    """Return a setting's URL, which may hold a password, as text; None where it is unset."""
    return None if url is None else url.get_secret_value()
