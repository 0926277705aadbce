"""`just chaos`: registrations while everything is killed at random, and a count of what was lost.

The same seed kills the same kinds in the same order. Exit status 1 when anything was lost or said that should not be.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
import psycopg

from service.embedded.postgres import EmbeddedPostgres
from tests.e2e.instance import Instance, running
from tests.faults.clients import Clients
from tests.faults.outage import CODE
from tests.servers.processes import send
from tests.servers.smtp import SmtpServer
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.clients import Answer

PEOPLE = 200  # at most at once; most wait for their mail
PATIENCE_SECONDS = 90.0  # a client gives up then; no outage of a run lasts so long
SETTLE_SECONDS = 30.0  # a lease, with room
LOOK_SECONDS = 0.05
PAUSE = (0.3, 1.2)  # between two kills
DOWN = (0.5, 3.0)  # how long the mail server stays away; the others are started again by the supervisor
KINDS = {"api worker": 4, "mail worker": 2, "redis": 2, "postgres": 1, "backend": 1, "mail server": 2}  # how often each
OWN = {
    "MAIL_WORKERS": "2", "RESEND_COOLDOWN_SECONDS": "0", "REGISTER_LIMIT": "1000/hour",
    "ACTIVATE_LIMIT": "1000/minute", "CODE_LIMITS": "off", "BASIC_LIMIT": "off",
}  # fmt: skip
USERS = "SELECT split_part(email_key, '@', 1), id::text, activated_at IS NOT NULL FROM vestibule.accounts"
OWED = "SELECT state FROM vestibule.mails WHERE state IN ('queued', 'sending')"
DEAD = "SELECT reason FROM vestibule.mails WHERE state = 'dead' AND reason <> 'superseded'"
COUNTS = """
SELECT (SELECT count(*) FROM vestibule.accounts),
       (SELECT count(*) FROM vestibule.accounts WHERE activated_at IS NOT NULL),
       (SELECT count(*) FROM vestibule.mails WHERE accepted_at IS NOT NULL),
       sum(registrations)::bigint, sum(activations)::bigint, sum(mails_accepted)::bigint
FROM vestibule.business_counts
"""


class Crowd:
    """People who do what the documents tell clients to do, and what they were told."""

    def __init__(self, port: int, smtp: SmtpServer, number: int) -> None:
        self.ids: dict[str, str] = {}  # of each 201
        self.active: set[str] = set()
        self.unanswered: set[str] = set()
        self.strange: list[str] = []  # answers that nobody should get
        self.retries = 0
        self.answered = threading.Event()  # once all have registered or given up: then enough is killed
        self._number = number
        self._clients = Clients(port)
        self._smtp = smtp
        self._pause = threading.Event()
        self._guard = threading.Lock()
        self._codes: dict[str, str] = {}
        self._read = 0

    def come(self, names: list[str], seconds: float) -> None:
        """Send everybody at a steady pace, and return when the last one is active or has given up."""
        began, pace = time.monotonic(), seconds / len(names)
        with ThreadPoolExecutor(PEOPLE) as pool:
            people = []
            for number, name in enumerate(names):
                self._pause.wait(max(0.0, began + number * pace - time.monotonic()))
                people.append(pool.submit(self._sign_up, name))
            for person in people:
                person.result()

    def _sign_up(self, name: str) -> None:
        key, until = uuid4().hex, time.monotonic() + patience(PATIENCE_SECONDS)
        while (answer := self._clients.register(name, Idempotency_Key=key)).status != 201:
            if not self._again(answer, until):
                self.unanswered.add(name)
                break
        else:
            self.ids[name] = answer.body["id"]
        if len(self.ids) + len(self.unanswered) == self._number:
            self.answered.set()
        if name in self.unanswered:
            return
        while not (code := self._code(name)) and time.monotonic() < until:
            self._pause.wait(LOOK_SECONDS)
        while (answer := self._clients.activate(name, code)).status != 200 and answer.error != "UserAlreadyActivated":
            if not self._again(answer, until):
                return
        self.active.add(name)

    def _again(self, answer: Answer, until: float) -> bool:
        """Wait as told and return whether the call is to be repeated; note an answer that nobody should get."""
        if answer.status not in {0, 429, 503} and answer.error != "RequestInProgress":
            self.strange.append(f"{answer.status} {answer.error}")
            return False
        self.retries += 1
        self._pause.wait(float(answer.headers.get("retry-after", 0.3)))
        return time.monotonic() < until

    def _code(self, name: str) -> str:
        with self._guard:  # each mail is read once, by whoever comes first
            for mail in self._smtp.mails[self._read :]:
                self._codes[mail.recipients[0].partition("@")[0]] = CODE.findall(mail.text)[0]
                self._read += 1
            return self._codes.get(name, "")


def victims(instance: Instance, kind: str) -> list[int]:
    """Return the pids of a kind, of which there may be none at this moment."""
    with suppress(psutil.NoSuchProcess):
        if kind.endswith("worker"):
            return instance.titled(kind)
        server = instance.child("postgres" if kind == "backend" else kind)
        if server and kind == "backend":  # one of its processes: it ends all connections and recovers
            return sorted(child.pid for child in psutil.Process(server).children())
        return [server] if server else []
    return []


@contextmanager
def killing(seed: int, instance: Instance, smtp: SmtpServer, enough: threading.Event) -> Iterator[Counter[str]]:
    """Kill until it is enough, at the latest behind the body, and count by kind; the mail server runs at the end."""
    chance, kills = random.Random(seed), Counter[str]()  # noqa: S311 - to be had again

    def kill() -> None:
        while not enough.wait(chance.uniform(*PAUSE)):
            [kind] = chance.choices(list(KINDS), list(KINDS.values()))
            if kind == "mail server":
                smtp.refuse()
                enough.wait(chance.uniform(*DOWN))
                smtp.accept()
            elif pids := victims(instance, kind):
                with suppress(ProcessLookupError):
                    send(chance.choice(pids), signal.SIGKILL)
            kills[kind] += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield kills
    finally:
        enough.set()
        thread.join()


def run(seed: int, registrations: int, seconds: float, folder: Path) -> tuple[str, list[str]]:
    """Run the service in an empty folder, register so many, kill; return what happened, and all that was lost."""
    with SmtpServer() as smtp, running(folder, "uvloop", OWN | {"MAIL_URL": smtp.url}) as instance:
        crowd = Crowd(instance.port, smtp, registrations)
        with killing(seed, instance, smtp, crowd.answered) as kills:
            crowd.come([f"c{seed}-{number}" for number in range(registrations)], seconds)
        wait_for(instance.ready, "it is ready again")
        lost = problems(crowd, EmbeddedPostgres(instance.data_dir).url)
    figures = (
        f"{len(crowd.ids)} registered, {len(crowd.active)} active, {len(smtp.mails)} mails, {crowd.retries} retries"
    )
    return f"seed {seed}: {figures}, {len(lost)} lost; killed: {dict(kills)}", lost


def problems(crowd: Crowd, url: str) -> list[str]:
    """Compare what clients were told with what is there."""
    with psycopg.connect(url, autocommit=True) as database:
        users = {name: (number, active) for name, number, active in database.execute(USERS).fetchall()}
        with suppress(AssertionError):  # which is found again below
            wait_for(lambda: not database.execute(OWED).fetchall(), "nothing is owed any more", SETTLE_SECONDS)
        owed, dead = database.execute(OWED).fetchall(), database.execute(DEAD).fetchall()
        counts = database.execute(COUNTS).fetchone()
    lost = {
        "a 201 without its account": {name for name, i in crowd.ids.items() if users.get(name, ("",))[0] != i},
        "an account without a 201": users.keys() - crowd.ids.keys() - crowd.unanswered,
        "never activated": crowd.ids.keys() - crowd.active,
        "active for its client only": {name for name in crowd.active if not users.get(name, ("", False))[1]},
    }
    found = [f"{what}: {name}" for what, names in lost.items() for name in sorted(names)]
    found += [f"said {answer}" for answer in crowd.strange]
    found += [f"a mail is {state}" for (state,) in [*owed, *dead]]
    if counts is None or counts[:3] != counts[3:]:
        found.append(f"the business counters differ from the tables: {counts}")
    return found


def main() -> int:
    """Run each seed and print what happened."""
    parser = argparse.ArgumentParser(prog="just chaos", description=__doc__)
    parser.add_argument("--registrations", type=int, default=1000, help="for each seed (1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="over which they come (60)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run for each (1 2 3)")
    asked = parser.parse_args()
    lost = 0
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory(prefix="vestibule-chaos-") as folder:
            figures, problems_found = run(seed, asked.registrations, asked.seconds, Path(folder))
        sys.stdout.write("\n".join([figures, *problems_found[:20], ""]))
        sys.stdout.flush()
        lost += len(problems_found)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
