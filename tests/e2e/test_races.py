"""Many at once, through HTTP and over all workers: one winner, and the truth for everybody.

The races of resends, redeems and new registrations are run on the stores, in tests/integration/test_account_races.py.
"""

from __future__ import annotations

import json
import socket
import struct
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from tests.e2e.at_once import at_once
from tests.e2e.client import USERS
from tests.e2e.instance import HOST
from tests.e2e.world import wrong_code

if TYPE_CHECKING:
    from tests.e2e.client import Answer
    from tests.e2e.conftest import Story
    from tests.e2e.world import Person

MANY = 16
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


def outcomes(answers: list[Answer]) -> Counter[str]:
    """Count what was heard."""
    return Counter(answer.outcome for answer in answers)


def test_of_sixteen_registrations_of_one_address_one_wins(story: Story) -> None:
    """Each with a password of its own: the winner's is the account's, the others hear that the address is taken."""
    person = story.place.person()
    people = [person.another_password() for _ in range(MANY)]
    answers = at_once([one.register for one in people])
    assert outcomes(answers) == {"201": 1, "409 UserAlreadyExists": MANY - 1}
    statuses = [one.me().status for one in people]
    assert statuses == [200 if answer.status == 201 else 401 for answer in answers]
    winner = people[statuses.index(200)]
    assert winner.activate(winner.code()).outcome == "200"
    assert len(story.place.post.to(person.email)) == 1


def test_of_sixteen_redeems_of_one_code_one_wins(story: Story) -> None:
    """The others hear that the account is active, and no attempt at it was a wrong one."""
    person = story.place.person().registered()
    code = person.code()
    answers = at_once([partial(person.activate, code)] * MANY)
    assert outcomes(answers) == {"200": 1, "409 UserAlreadyActivated": MANY - 1}


def test_sixteen_wrong_codes_at_once_are_five_attempts(story: Story) -> None:
    """Not one guess more is answered as a guess, however parallel they come."""
    person = story.place.person().registered()
    wrong = wrong_code(person.code())
    heard = outcomes(at_once([partial(person.activate, wrong)] * MANY))
    assert heard == {"400 InvalidActivationCode": 5, "429 CodeAttemptsExhausted": MANY - 5}


def test_a_registration_goes_on_when_its_client_has_left(story: Story) -> None:
    """A client that closes after its request, without waiting, has an account and a mail with a code that works."""
    people = [story.place.person() for _ in range(8)]
    for person in people:
        _send_and_leave(person, reset=False)
    for person in people:
        code = person.mail().code
        assert person.another_password().register().outcome == "409 UserAlreadyExists"
        assert person.activate(code).outcome == "200"
        assert len(story.place.post.to(person.email)) == 1


def test_a_registration_whose_connection_was_reset_is_there_as_a_whole_or_not_at_all(story: Story) -> None:
    """A reset may throw away what the service has not read yet: the address is free then, or the account complete."""
    people = [story.place.person() for _ in range(8)]
    for person in people:
        _send_and_leave(person, reset=True)
    for person in people:
        second = person.another_password()
        again = second.register()
        assert again.outcome in {"201", "409 UserAlreadyExists"}
        owner = second if again.status == 201 else person
        assert owner.activate(person.mail().code).outcome == "200"
        assert len(story.place.post.to(person.email)) == 1


def _send_and_leave(person: Person, *, reset: bool) -> None:
    ledger = person.client.instance.ledger
    ledger.addresses.add(person.email)
    ledger.passwords.add(person.password)
    body = json.dumps({"email": person.email, "password": person.password})
    head = f"POST {USERS}/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection((HOST, person.client.instance.port), 10, (person.client.address, 0)) as connection:
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
