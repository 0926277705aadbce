#!/usr/bin/env python3
"""Registers a canary against a running Vestibule, takes the code from its mail, activates, and times each step."""

from __future__ import annotations

import argparse
import re
import secrets
import sys
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from remote import Unreachable, add_remote_options, basic, remote_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from remote import Answer, Remote

EXAMPLES = """\
examples:
  python ops/smoke.py                                    a development machine: reads the mail from /dev/mail
  python ops/smoke.py --url https://… --email me+canary@example.com --ask
                                                         anywhere: type the code that you have received

exit status: 0 every step went well, 1 a step failed, 3 no answer from the service
"""
T = TypeVar("T")
OK, FAILED, NO_ANSWER = 0, 1, 3
CODE = re.compile(r"^\d{4,10}$", re.MULTILINE)  # in the mail's text the code stands alone on a line
MAIL_SECONDS = 30.0
LOOK_SECONDS = 0.1


class StepFailed(Exception):
    """A step did not do what it should; the text says which and how."""


class Canary:
    """An account to be, and the steps of its way."""

    def __init__(self, remote: Remote, email: str) -> None:
        self._remote = remote
        self.email = email
        self._password = secrets.token_urlsafe(24)

    def health(self) -> float:
        """See whether the service says that it is well, or at least that it works."""
        answer = self._remote.get("/api/v1/health")
        said = answer.json()
        if said.get("status") == "down":
            down = [name for name, state in said.get("checks", {}).items() if state == "down"]
            raise StepFailed(": ".join(["the service is down", *([", ".join(down)] if down else [])]))
        _expect(answer, 200)
        return answer.milliseconds

    def register(self) -> float:
        """Create the account; a service that is strict about addresses answers 202."""
        answer = self._remote.post("/api/v1/users/register", {"email": self.email, "password": self._password})
        _expect(answer, 201, 202)
        return answer.milliseconds

    def caught(self) -> list[dict[str, Any]]:
        """Return the catcher's mails; a service that really sends has none to show."""
        answer = self._remote.get("/dev/mail", ops=True)
        if answer.status != HTTPStatus.OK:
            raise StepFailed(f"/dev/mail answers {answer.problem()}: use --ask where mails are really sent")
        mails: list[dict[str, Any]] = answer.json()["mails"]
        return mails

    def code_from_catcher(self) -> tuple[str, float]:
        """Wait for the mail at the development catcher; return its code and the milliseconds it took."""
        begun = time.perf_counter()
        while time.perf_counter() - begun < MAIL_SECONDS:
            code = code_for(self.email, self.caught())
            if code is not None:
                return code, (time.perf_counter() - begun) * 1000
            time.sleep(LOOK_SECONDS)  # a mailbox tells no event
        raise StepFailed(f"no mail within {MAIL_SECONDS:g} s: does a mail worker run?")

    def activate(self, code: str) -> float:
        """Redeem the code."""
        answer = self._remote.post("/api/v1/users/activate", {"code": code}, basic(self.email, self._password))
        _expect(answer, 200)
        return answer.milliseconds

    def me(self) -> float:
        """Look whether the account is active."""
        answer = self._remote.get("/api/v1/users/me", basic(self.email, self._password))
        _expect(answer, 200)
        if answer.json()["is_activated"] is not True:
            raise StepFailed("the account is not active")
        return answer.milliseconds


def code_for(email: str, mails: list[dict[str, Any]]) -> str | None:
    """Return the code in the first mail to the address, or None."""
    for mail in mails:
        found = CODE.search(mail["text"].replace("\r", ""))
        if mail["to"] == email and found is not None:
            return found[0]
    return None


def _expect(answer: Answer, *statuses: int) -> None:
    if answer.status not in statuses:
        raise StepFailed(answer.problem())


def run(canary: Canary, *, ask: bool) -> None:
    """Take all steps, telling each; raises StepFailed and Unreachable."""
    _step("health", canary.health)
    if not ask:
        _timed("mail", canary.caught)  # before somebody's mailbox gets a mail that nobody will read
    _step("register", canary.register)
    if ask:
        code = input(f"code sent to {canary.email}: ").strip()
    else:
        code, took = _timed("mail", canary.code_from_catcher)
        print(f"mail      {took:9.1f} ms")
    _step("activate", lambda: canary.activate(code))
    _step("me", canary.me)


def _step(name: str, take: Callable[[], float]) -> None:
    print(f"{name:<10}{_timed(name, take):9.1f} ms")


def _timed(name: str, take: Callable[[], T]) -> T:
    try:
        return take()
    except StepFailed as failure:
        raise StepFailed(f"{name}: {failure}") from None


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
        run(Canary(remote_of(options), email), ask=options.ask)
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
