"""A whole service before the servers of a row: `vestibule up` on the tests' database and Redis, and its people."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.e2e.client import basic
from tests.e2e.instance import COMMAND, QUICK, environment, launched
from tests.faults.clients import SECRET, Answer, Clients, new
from tests.servers.ports import free_ports
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

START_SECONDS, STOP_SECONDS = 60.0, 40.0
COMMON = {"RESEND_COOLDOWN_SECONDS": "0", "WORKERS": "1"}
USERS = "/api/v1/users"


@dataclass(frozen=True, slots=True)
class Service:
    """A running `vestibule up`; people are called by their address."""

    clients: Clients
    process: subprocess.Popen[bytes]
    output: Path
    status_urls: dict[str, str] = field(default_factory=dict)

    def said(self) -> str:
        """Return what it has printed so far."""
        return self.output.read_text(encoding="utf-8")

    def registered(self, number: int = 1, *domains: str) -> list[str]:
        """Register so many new people, at these domains in turn, and return their addresses."""
        places = domains or ("example.com",)
        people = [f"{new()}@{places[index % len(places)]}" for index in range(number)]
        for address in people:
            body = {"email": address, "password": SECRET}
            answer = self.clients.ask("POST", f"{USERS}/register", body)
            assert answer.status == 201, answer
            self.status_urls[address] = answer.body["status_url"]
        return people

    def status(self, address: str) -> dict[str, Any]:
        """Return where a registration stands, as its page sees it."""
        return self.clients.ask("GET", self.status_urls[address]).body

    def states(self, people: Sequence[str]) -> set[str]:
        """Return the states in which registrations are."""
        return {str(self.status(address).get("state")) for address in people}

    def activate(self, address: str, code: str) -> Answer:
        """Redeem a code."""
        headers = {"Authorization": basic(address, SECRET)}
        return self.clients.ask("POST", f"{USERS}/activate", {"activation_code": code}, **headers)

    def activates(self, address: str, code: str) -> None:
        """Redeem a wrong code, which is refused, and then the right one."""
        refused = self.activate(address, f"{(int(code) + 1) % 1_000_000:06}")
        assert (refused.status, refused.body["attempts_left"]) == (400, 4), refused
        done = self.activate(address, code)
        assert (done.status, done.body["is_activated"]) == (200, True), done

    def notes(self) -> list[str]:
        """Return what health notes about the mail server."""
        notes = self.clients.ask("GET", "/api/v1/health").body["notes"]
        return [note for note in notes if note.startswith("The mail server: ")]

    def activations(self) -> int:
        """Return how many activations the metrics have."""
        return int(self.clients.ask("GET", "/api/v1/metrics").body["business_metrics"]["activations"])

    def walks(self, codes: Callable[[str], Sequence[str]], promised: float = 5.0) -> float:
        """Register, read the mail, activate, ask for another code; return the seconds that the first mail took.

        `codes` returns the codes that were mailed to an address.
        """
        before = self.activations()
        [first] = self.registered()
        seconds = wait_for(lambda: codes(first), "the mail", promised)
        self.activates(first, codes(first)[-1])
        [second] = self.registered()
        wait_for(lambda: self.states([second]) == {"accepted"}, "the other mail", promised)
        assert self.clients.ask("POST", f"{USERS}/resend", Authorization=basic(second, SECRET)).status == 202
        wait_for(lambda: len(codes(second)) > 1, "the resent mail", promised)
        assert self.activate(second, codes(second)[-1]).status == 200
        wait_for(lambda: self.activations() == before + 2, "the metrics have it", 5.0)
        return seconds


@contextmanager
def whole_service(
    folder: Path, settings: Mapping[str, str], before: Sequence[str] = (), **variables: str
) -> Iterator[Service]:
    """Run a service with these settings, ready at the beginning, and other variables; `before` is what becomes it."""
    port, output = free_ports(), folder / "output"
    own = {"BIND": f"127.0.0.1:{port}", "DATA_DIR": str(folder / "data"), **QUICK, **COMMON, **settings}
    with launched([*before, *COMMAND], environment(own) | variables, output) as process:
        one = Service(Clients(port), process, output)
        wait_for(lambda: "runs on" in one.said() or process.poll() is not None, "it starts", START_SECONDS)
        assert process.poll() is None, one.said()
        yield one
        process.terminate()
        assert process.wait(patience(STOP_SECONDS)) == 0, one.said()[-2000:]
