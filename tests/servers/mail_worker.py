"""A mail worker as a program of its own: `python -m tests.servers.mail_worker`, by the settings of its environment."""

from __future__ import annotations

import os
import sys

from service import wiring
from service.embedded.servers import Servers
from service.mail import worker
from service.settings import SettingsError, load


def main() -> None:
    """Run it until it is told to stop."""
    settings = load(os.environ)
    assert settings.database_url
    assert settings.redis_url
    assert settings.mail_url
    assert settings.code_keys
    servers = Servers(
        settings.database_url.get_secret_value(),
        settings.redis_url.get_secret_value(),
        settings.mail_url.get_secret_value(),
        settings.code_keys,
    )
    worker.run(settings, servers, wiring.mail)


if __name__ == "__main__":
    try:
        main()
    except SettingsError as error:
        sys.exit(str(error))
