"""`just chaos`: registrations while everything is killed at random, and a count of what was lost.

The same seed kills the same kinds in the same order. Exit status 1 when anything was lost or said that should not be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from service.embedded.postgres import EmbeddedPostgres
from tests.faults.chaos_clients import Crowd
from tests.faults.chaos_monkey import SIGNS, MailServer, Monkey
from tests.faults.clients import Clients
from tests.faults.outage import SETTINGS, running_up
from tests.servers.ports import free_ports
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections import Counter

SETTLE_SECONDS = 60.0  # the longest back-off and a lease, with room
OWN = {"REGISTER_LIMIT": "1000/hour", "ACTIVATE_LIMIT": "1000/minute", "CODE_LIMITS": "off", "BASIC_LIMIT": "off"}
USERS = "SELECT split_part(email_key, '@', 1), id::text, activated_at IS NOT NULL FROM vestibule.accounts"
OWED = "SELECT state, count(*) FROM vestibule.mails WHERE state IN ('queued', 'sending') GROUP BY state"
DEAD = "SELECT coalesce(reason, ''), count(*) FROM vestibule.mails WHERE state = 'dead' GROUP BY reason"
COUNTS = """
SELECT (SELECT count(*) FROM vestibule.accounts),
  (SELECT count(*) FROM vestibule.accounts WHERE activated_at IS NOT NULL),
       (SELECT count(*) FROM vestibule.mails WHERE accepted_at IS NOT NULL),
       sum(registrations)::bigint, sum(activations)::bigint, sum(mails_accepted)::bigint
FROM vestibule.business_counts
"""
COLUMNS = ("seed", "registrations", "201s", "accounts", "mails", "repeats", "active", "retries", "lost", "longest s")


@dataclass
class Report:
    """What one run came to; `problems` names everything that was lost, and every answer that should not be."""

    seed: int
    registrations: int
    created: int = 0
    accounts: int = 0
    mails: int = 0
    repeats: int = 0
    active: int = 0
    retries: int = 0
    longest: float = 0.0
    kills: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def row(self) -> list[str]:
        """Return the cells of the table."""
        figures = [self.seed, self.registrations, self.created, self.accounts, self.mails, self.repeats, self.active]
        figures += [self.retries, len(self.problems)]
        kills = [self.kills.get(kind, 0) for kind in SIGNS]
        return [*map(str, figures), f"{self.longest:.1f}", *map(str, kills)]


def run(seed: int, registrations: int, seconds: float, folder: Path) -> Report:
    """Run the service in an empty folder, register so many over so many seconds, kill, count."""
    with ExitStack() as stack:
        enter = stack.enter_context
        mails, output, data = folder / "mails", folder / "output", folder / "data"
        mail = enter(MailServer(free_ports(1), mails))
        port = free_ports(1)
        own = {"BIND": f"127.0.0.1:{port}", "DATA_DIR": str(data), "MAIL_URL": mail.url, "MAIL_WORKERS": "2"}
        service = enter(running_up(SETTINGS | OWN | own, output))
        wait_for(lambda: "runs on" in output.read_text(encoding="utf-8") or service.poll() is not None, "start", 30.0)
        names = [f"c{seed}-{number}" for number in range(registrations)]
        crowd = enter(Crowd(Clients(port), names, seconds, mails))
        with Monkey(seed, service.pid, mail) as monkey:
            crowd.arrive()
        crowd.settle(SETTLE_SECONDS)
        return judge(Report(seed, registrations), crowd, monkey.kills, data)


def judge(report: Report, crowd: Crowd, kills: Counter[str], data: Path) -> Report:
    """Compare what clients were told with what is there."""
    told, mailed = crowd.told, {mail.to.partition("@")[0] for mail in crowd.mails}
    with psycopg.connect(EmbeddedPostgres(data).url, autocommit=True) as database:
        users = {name: (number, active) for name, number, active in database.execute(USERS).fetchall()}
        owed = settled(database)
        dead = database.execute(DEAD).fetchall()
        row = database.execute(COUNTS).fetchone()
    report.created, report.accounts, report.kills = len(told.ids), len(users), dict(kills)
    report.mails = len(crowd.mails)
    report.repeats = report.mails - len({(mail.to, mail.code) for mail in crowd.mails})
    report.active, report.retries, report.longest = len(told.active), told.retries, told.longest
    lost = {
        "a 201 without its account": {name for name, i in told.ids.items() if users.get(name, ("",))[0] != i},
        "an account without a 201": users.keys() - told.ids.keys() - told.unanswered,
        "an account without a mail": users.keys() - mailed,
        "a code that does not activate": mailed - told.active,
        "active for its client only": {name for name in told.active if not users.get(name, ("", False))[1]},
    }
    report.problems = [f"{what}: {name}" for what, names in lost.items() for name in sorted(names)]
    report.problems += [f"said {answer}" for answer in told.strange]
    report.problems += [f"{number} mails are still {state}" for state, number in owed]
    report.problems += [f"{number} mails are dead: {reason}" for reason, number in dead if reason != "superseded"]
    if row is None or row[:3] != row[3:]:
        report.problems.append(f"the business counters differ from the tables: {row}")
    return report


def settled(database: psycopg.Connection[tuple[str, int]]) -> list[tuple[str, int]]:
    """Wait for the last outcomes to be written, a lease at most, and return what is still owed."""
    until = time.monotonic() + SETTLE_SECONDS / 2
    while (owed := database.execute(OWED).fetchall()) and time.monotonic() < until:
        time.sleep(0.1)  # what is waited for is in another process
    return owed


def table(reports: list[Report]) -> str:
    """Return the runs, one a line."""
    rows = [[*COLUMNS, *(f"{kind} kills" for kind in SIGNS)], *[report.row() for report in reports]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(" ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> int:
    """Run each seed and print the table."""
    parser = argparse.ArgumentParser(prog="just chaos", description=__doc__)
    parser.add_argument("--registrations", type=int, default=1000, help="for each seed (1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="over which they come (60)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run for each (1 2 3)")
    asked = parser.parse_args()
    reports = []
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory(prefix="vestibule-chaos-") as folder:
            reports.append(run(seed, asked.registrations, asked.seconds, Path(folder)))
        sys.stdout.write("\n".join([f"seed {seed}: {problem}" for problem in reports[-1].problems[:20]] + [""]))
        sys.stdout.flush()
    sys.stdout.write(table(reports) + "\n")
    return 1 if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
