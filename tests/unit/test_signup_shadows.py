"""The flows under ENUMERATION=strict: the same answers, the same work, whoever has the address."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import bcrypt
import pytest
import trio

from actors.domain.code import Keyring
from actors.domain.errors import AlreadyActivated, InvalidCredentials, WrongCode
from actors.domain.mail import MailKind
from actors.kit.mailbox import NotAccepted
from actors.password_hasher import Recognise
from actors.ports import StoreUnavailable
from service.adapters.bcrypt_threads import BcryptThreads
from tests.fakes.flows import EMAIL, KEY, NO_LIMITS, Flows, credentials, form, visit
from tests.fakes.hashing import DUMMY
from tests.fakes.shadows import FakeShadows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

THEIRS = "another horse"
SALT = bytes(range(16))


@pytest.fixture
async def strict() -> AsyncIterator[Flows]:
    """Return strict flows in which Ada is active."""
    async with Flows.running(NO_LIMITS, strict=True) as flows:
        await flows.signup.register(visit(), form())
        await flows.signup.activate(visit(), credentials(), await flows.code())
        flows.hashing.hashes = 0
        yield flows


def shadows(flows: Flows) -> FakeShadows:
    """Return the store of strict flows."""
    assert isinstance(flows.accounts, FakeShadows)
    return flows.accounts


async def test_a_taken_address_can_be_registered(strict: Flows) -> None:
    """A stranger hears what the first registration heard, and finds an account that waits."""
    registration = await strict.signup.register(visit(), form(password=THEIRS))
    assert registration.email == EMAIL
    profile = await strict.signup.profile(visit(), credentials(THEIRS))
    assert (profile.id, profile.is_activated) == (registration.id, False)
    assert (await strict.signup.profile(visit(), credentials())).is_activated
    assert list(shadows(strict).kinds.values()) == [MailKind.CODE, MailKind.NOTICE]


async def test_no_code_activates_a_shadow(strict: Flows) -> None:
    """Not even the one that its ids would make under the signing key."""
    await strict.signup.register(visit(), form(password=THEIRS))
    (_, shadow) = (await shadows(strict).find_all([KEY]))[0]
    code = strict.keyring.code(shadow.id, strict.keyring.code_id(shadow.code.id.number))
    with pytest.raises(WrongCode) as caught:
        await strict.signup.activate(visit(), credentials(THEIRS), code)
    assert caught.value.attempts_left == 4
    with pytest.raises(AlreadyActivated):
        await strict.signup.activate(visit(), credentials(), code)


@pytest.mark.parametrize("email", [EMAIL, "nobody@example.com"])
async def test_a_registration_costs_one_hash(strict: Flows, email: str) -> None:
    """For a taken address as for a free one."""
    await strict.signup.register(visit(), form(email, THEIRS))
    assert strict.hashing.hashes == 1


@pytest.mark.parametrize("email", [EMAIL, "nobody@example.com", "no address"])
async def test_a_wrong_password_costs_one_hash(strict: Flows, email: str) -> None:
    """With an account, with a shadow beside it, and with neither."""
    await strict.signup.register(visit(), form(password=THEIRS))
    strict.hashing.hashes = 0
    with pytest.raises(InvalidCredentials):
        await strict.signup.profile(visit(), credentials("not this one", email))
    assert strict.hashing.hashes == 1
    assert strict.hashing.checks == 0


async def test_all_passwords_of_an_address_share_a_salt(strict: Flows) -> None:
    """So that one hash tells which of them was typed, and a registration from open days is among them."""
    await strict.signup.register(visit(), form(password=THEIRS))
    (accounts,) = await shadows(strict).find_all([KEY])
    assert len({account.password_hash[:39] for account in accounts}) == 1
    assert len({account.password_hash for account in accounts}) == 2


async def test_a_password_that_bcrypt_cannot_take_is_a_wrong_one(strict: Flows) -> None:
    """It costs the same hash, of nothing."""
    with pytest.raises(InvalidCredentials):
        await strict.signup.profile(visit(), credentials("x" * 73))
    assert strict.hashing.hashes == 1


async def test_a_store_that_is_away_is_noticed_before_the_hash(strict: Flows) -> None:
    """Nothing is lost, and no thread is kept busy in vain."""
    strict.accounts.away = StoreUnavailable()
    with pytest.raises(NotAccepted):
        await strict.signup.register(visit(), form(password=THEIRS))
    assert strict.hashing.hashes == 0


async def test_no_hash_recognises_nothing() -> None:
    """The dummy is hashed in vain for an address without registrations."""
    async with Flows.running(NO_LIMITS, strict=True) as flows:
        flows.hashing.accept_all = True
        hasher = flows.access._hasher  # noqa: SLF001 - the actor that the flows ask
        assert await hasher.ask(Recognise(b"whatever", ())) is None
        assert await hasher.ask(Recognise(b"whatever", (DUMMY,))) is None


async def test_bcrypt_hashes_like_another_hash() -> None:
    """With a salt of ours, or with the salt of a hash; each is plain bcrypt; a corrupt one makes no hash."""
    async with BcryptThreads.open(4, 1, 0) as threads:
        first = await threads.hash_like(b"right", threads.setting(SALT))
        assert bcrypt.checkpw(b"right", first)
        assert await threads.hash_like(b"right", first) == first
        other = await threads.hash_like(b"wrong", first)
        assert other != first
        assert other[:29] == first[:29] == threads.setting(SALT)
        assert await threads.hash_like(b"right", b"$2b$04$corrupt") == b""


def test_salts_differ_by_address_and_stay_the_same() -> None:
    """Another key to sign with changes none of them."""
    keyring, rotated = Keyring({"k1": bytes(32)}), Keyring({"k2": b"2" * 32, "k1": bytes(32)})
    assert keyring.salt(KEY) == rotated.salt(KEY)
    assert keyring.salt(KEY) != keyring.salt(f"{uuid4().hex}@example.com")
    assert len(keyring.salt(KEY)) == 16


async def test_of_parallel_activations_of_one_registration_one_succeeds(strict: Flows) -> None:
    """The others look the registration up once more and hear that it is active."""
    eve = {"email": "eve@example.com"}
    await strict.signup.register(visit(), form(**eve))
    code = await strict.code("eve@example.com")
    heard: list[str] = []

    async def activate() -> None:
        try:
            await strict.signup.activate(visit(), credentials(**eve), code)
            heard.append("activated")
        except AlreadyActivated:
            heard.append("already")

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(activate)
    assert (heard.count("activated"), heard.count("already")) == (1, 7)
