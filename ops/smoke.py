#!/usr/bin/env python3
"""Registers a canary against a running Vestibule, takes the code from its mail, activates, and times each step."""

from __future__ import annotations

import argparse
import re
import secrets
import sys
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from remote import Unreachable, add_remote_options, basic, remote_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote import Answer, Remote

EXAMPLES = """\
examples:
  python ops/smoke.py                                    a development machine: reads the mail from /dev/mail
  python ops/smoke.py --url https://… --email me+canary@example.com --ask
                                                         anywhere: type the code that you have received

exit status: 0 every step went well, 1 a step failed, 3 no answer from the service
"""
OK, FAILED, NO_ANSWER = 0, 1, 3
CODE = re.compile(r"^\d{4,10}$", re.MULTILINE)  # in the mail's text the code stands alone on a line
MAIL_SECONDS = 30.0
LOOK_SECONDS = 0.1


class StepFailed(Exception):
    """A step did not do what it should; the text says which and how."""


def walk(remote: Remote, email: str, *, ask: bool) -> None:
    """Take all steps, telling each; raises StepFailed and Unreachable."""
    password = secrets.token_urlsafe(24)
    health = remote.get("/api/v1/health")
    said = health.json()
    if said.get("status") == "down":
        down = ", ".join(name for name, state in said.get("checks", {}).items() if state == "down")
        raise StepFailed(f"health: the service is down: {down}".removesuffix(": "))
    tell("health", health, 200)
    if not ask:
        caught(remote)  # before somebody's mailbox gets a mail that nobody will read
    registered = remote.post("/api/v1/users/register", {"email": email, "password": password})
    tell("register", registered, 201, 202)  # 202 by a service that is strict about addresses
    code = input(f"code sent to {email}: ").strip() if ask else code_from_catcher(remote, email)
    account = basic(email, password)
    tell("activate", remote.post("/api/v1/users/activate", {"code": code}, account), 200)
    me = remote.get("/api/v1/users/me", account)
    if me.status == HTTPStatus.OK and me.json()["is_activated"] is not True:
        raise StepFailed("me: the account is not active")
    tell("me", me, 200)


def tell(step: str, answer: Answer, *statuses: int) -> None:
    """Print how long a step took; raises StepFailed for an answer of another status."""
    if answer.status not in statuses:
        raise StepFailed(f"{step}: {answer.problem()}")
    print(f"{step:<10}{answer.milliseconds:9.1f} ms")


def caught(remote: Remote) -> list[dict[str, Any]]:
    """Return the catcher's mails; a service that really sends has none to show."""
    answer = remote.get("/dev/mail", ops=True)
    if answer.status != HTTPStatus.OK:
        raise StepFailed(f"mail: /dev/mail answers {answer.problem()}: use --ask where mails are really sent")
    mails: list[dict[str, Any]] = answer.json()["mails"]
    return mails


def code_from_catcher(remote: Remote, email: str) -> str:
    """Wait for the mail at the development catcher and return its code; tells how long it took."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < MAIL_SECONDS:
        for mail in caught(remote):
            found = CODE.search(mail["text"].replace("\r", ""))
            if mail["to"] == email and found is not None:
                print(f"mail      {(time.perf_counter() - begun) * 1000:9.1f} ms")
                return found[0]
        time.sleep(LOOK_SECONDS)  # a mailbox tells no event
    raise StepFailed(f"mail: none within {MAIL_SECONDS:g} s: does a mail worker run?")


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(
        prog="smoke.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_remote_options(options)
    options.add_argument("--email", help="default: a new address under example.com")
    options.add_argument("--ask", action="store_true", help="type the code instead of reading it from the catcher")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options say and return the exit status."""
    options = parser().parse_args(arguments)
    try:
        email = options.email or f"canary-{secrets.token_hex(6)}@example.com"
        walk(remote_of(options), email, ask=options.ask)
    except StepFailed as failure:
        print(f"smoke.py: {failure}", file=sys.stderr)
        return FAILED
    except Unreachable as error:
        print(f"smoke.py: {error}", file=sys.stderr)
        return NO_ANSWER
    except (KeyboardInterrupt, EOFError):
        return FAILED
    print("all is well")
    return OK


if __name__ == "__main__":
    sys.exit(main())
