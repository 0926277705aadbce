"""ENUMERATION=strict: what strangers hear is the same in every world, whatever they do and whatever its owner does."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import trio

from tests.contracts.shadow_stores import MemoryShadowStore, PostgresShadowStore
from tests.contracts.strangers import Move, Scene, World, crowds, moves
from tests.fakes.flows import LIMITS, NO_LIMITS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.forms import Limits
    from tests.contracts.shadow_stores import ShadowStore

LENGTH = 40
EITHER = pytest.mark.parametrize("limits", [NO_LIMITS, LIMITS], ids=["unlimited", "limited"])


@pytest.fixture
async def store(store_url: str | None) -> AsyncIterator[ShadowStore]:
    """Open one of the stores, empty."""
    if store_url is None:
        yield MemoryShadowStore()
        return
    async with PostgresShadowStore.open(store_url) as postgres:
        yield postgres


@pytest.fixture
def seeds(store_url: str | None) -> range:
    """Give the numbers of the sequences: fewer of them where every move is a statement."""
    return range(12 if store_url is None else 2)


async def transcript(store: ShadowStore, world: World, seed: int, limits: Limits, *, lively: bool = False) -> list[str]:
    """Play one sequence in one world and return what the strangers heard."""
    chance, owners = Random(f"{seed}"), Random(f"{world} {seed}")  # noqa: S311 - a test that can be repeated
    async with Scene.open(store, uuid4().hex, limits) as scene:
        await scene.build(world)
        heard = []
        for move in moves(chance, LENGTH):
            if lively:
                await scene.owner_moves(owners)
            heard.append(await scene.heard(move))
        return heard


async def crowded(store: ShadowStore, world: World, seed: int) -> list[str]:
    """Play one sequence, with all that can be done at once done at once."""
    heard: dict[int, str] = {}

    async def one(scene: Scene, place: int, move: Move) -> None:
        heard[place] = await scene.heard(move)

    async with Scene.open(store, uuid4().hex, NO_LIMITS) as scene:
        await scene.build(world)
        for crowd in crowds(moves(Random(f"{seed}"), LENGTH)):  # noqa: S311 - as above
            async with trio.open_nursery() as nursery:
                for place, move in enumerate(crowd, len(heard)):
                    nursery.start_soon(one, scene, place, move)
    return [heard[place] for place in range(len(heard))]


@EITHER
async def test_no_sequence_of_calls_tells_the_worlds_apart(store: ShadowStore, seeds: range, limits: Limits) -> None:
    """Free, pending, lapsed, spent and active addresses answer alike to any strangers who do not read the mail."""
    for seed in seeds:
        expected = await transcript(store, World.FREE, seed, limits)
        for world in World:
            assert await transcript(store, world, seed, limits) == expected, world


@EITHER
async def test_what_the_owner_does_meanwhile_is_not_heard(store: ShadowStore, seeds: range, limits: Limits) -> None:
    """Registering, activating, resending between the strangers' calls changes nothing that they hear."""
    for seed in seeds:
        expected = await transcript(store, World.FREE, seed, limits)
        for world in World:
            assert await transcript(store, world, seed, limits, lively=True) == expected, world


async def test_calls_at_once_tell_no_more(store: ShadowStore, seeds: range) -> None:
    """What strangers hear at once is what each would have heard alone."""
    for seed in seeds:
        expected = await transcript(store, World.FREE, seed, NO_LIMITS)
        for world in World:
            assert await crowded(store, world, seed) == expected, world


async def test_the_sequences_reach_what_can_be_heard() -> None:
    """The strangers hear of registrations, wrong and dead codes, resends, limits and every state but the last."""
    said = ""
    for seed in range(24):
        for limits in (LIMITS, NO_LIMITS):
            said += "\n".join(await transcript(MemoryShadowStore(), World.FREE, seed, limits))
    for word in (
        "registration", "InvalidCredentials", "WrongCode", "CodeExpired", "CodeAttemptsExhausted", "ResendTooSoon",
        "CodesExhausted", "'resend'", "profile", "queued", "accepted", "expired", "exhausted",
    ):  # fmt: skip
        assert word in said, word
    assert "activated'" not in said
