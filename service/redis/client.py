"""The Redis client: on threads of its own, with short time-outs, no repeats, and a breaker."""

from __future__ import annotations

import hashlib
import re
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import anyio
import redis
from loguru import logger
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.retry import Retry

from actors.kit.mailbox import NotAccepted
from service.breaker import Breaker, BreakerOpen
from service.threads import DeadlinePassed, Threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

ResultT = TypeVar("ResultT")

SOCKET_SECONDS = 0.3  # a stalled server costs a caller this, once; a healthy one answers in a millisecond
CALL_SECONDS = 1.0  # bounds what no socket time-out does: a name server that does not answer, a server that trickles
THREADS = 4  # batches of the limiter, the metrics and the wake-ups; each waits for the network, not for a core
SPARE_CONNECTIONS = 4
# Every kind of command that the stores and the mail worker use, on keys of its own: a user without one of these rights
# would be refused now and then. The last one leaves nothing behind.
PROBE = """
PING; MULTI; EXEC; SET {}:s 1 PX 1000; EXISTS {}:s;
HSET {}:h f 1; EXPIRE {}:h 1; HGETALL {}:h; HDEL {}:h f;
ZADD {}:z 1 1; PEXPIREAT {}:z 1; ZCARD {}:z; ZSCORE {}:z 1; ZRANGE {}:z 0 0; ZREMRANGEBYSCORE {}:z 1 1; ZREM {}:z 1;
XADD {}:x MAXLEN 1 * f 1; EXPIRE {}:x 1; XGROUP CREATE {}:x g 0; XREADGROUP GROUP g c NOACK STREAMS {}:x >;
DEL {}:s {}:h {}:z {}:x
"""
NO_RIGHT = re.compile(r"has no permissions to run the '[^']*' command|No permissions to access a key")
NO_RIGHT_IN_REDIS_7 = "The user executing the script can't run this command"  # which does not say which
UNKNOWN_COMMAND = re.compile(r"unknown command '(\w+)'")
NO_DATABASE = "DB index is out of range"

# An error reply is an outage like a time-out (out of memory, read-only, no permission, disk full): a server that
# reads but does not write would show every window empty for ever.
STALLS = (redis.TimeoutError, DeadlinePassed, ResponseError, InvalidResponse, AuthenticationError)
REFUSALS = (redis.ConnectionError, OSError)


class RedisUnavailable(Exception):
    """Redis is away or refuses to work: go on without it.

    With `asked` it is unknown whether a write was done; without, nothing was sent. The text is for an operator.
    """

    def __init__(self, *, asked: bool, reply: str = "") -> None:
        super().__init__(f"Redis refuses: {reply}" if reply else "the server cannot be reached")
        self.asked = asked


class RedisRefusal(Exception):
    """Redis answers and refuses us, over the log-in or a right; the text says which, in its own words."""


class BadRedisUrl(ValueError):
    """The URL names no Redis; the text does not hold it, since it may hold a password."""


class Redis:
    """One worker's access to Redis.

    No call is ever repeated. The first one that meets a stalled server costs SOCKET_SECONDS, the ones after it
    nothing, until a probe aside has written and read.
    """

    def __init__(self, client: redis.Redis, threads: Threads, aside: Threads) -> None:
        self._client = client
        self._threads = threads
        self._aside_threads = aside
        self.breaker = Breaker(stalls=STALLS, refusals=REFUSALS)
        self._refusal = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Redis]:
        """Give access around the body; connects at the first call, so it opens while Redis is away too.

        Raises BadRedisUrl. On the way out the probe ends and the connections are closed.
        """
        client = _client(url)
        try:
            async with (
                Threads("redis", THREADS, deadline=CALL_SECONDS) as threads,
                Threads("redis-aside", 1, deadline=CALL_SECONDS) as aside,
                anyio.create_task_group() as group,
            ):
                redis_ = cls(client, threads, aside)
                group.start_soon(redis_.breaker.probing, redis_._probe, redis_._log)
                yield redis_
                group.cancel_scope.cancel()
        finally:
            client.close()

    async def call(self, work: Callable[[redis.Redis], ResultT]) -> ResultT:
        """Return what `work` returns, run in a thread with the sync client; raises RedisUnavailable.

        A caller that is cancelled leaves the work running to its own end. While Redis is away the work is not run.
        """
        try:
            with self.breaker.guard():
                return await self._threads.run(partial(self._work, work))
        except (BreakerOpen, NotAccepted):
            raise RedisUnavailable(asked=False) from None
        except (*STALLS, *REFUSALS) as error:
            self._refusal = refusal(error)
            raise RedisUnavailable(asked=True) from None  # the texts of errors can hold keys and arguments

    def _work(self, work: Callable[[redis.Redis], ResultT]) -> ResultT:
        if self.breaker.is_open:  # it opened while this call waited for a thread
            raise BreakerOpen
        return work(self._client)

    async def _probe(self) -> None:
        try:
            await self._aside_threads.run(partial(probe, self._client))
        except (*STALLS, *REFUSALS) as error:
            before, self._refusal = self._refusal, refusal(error)
            if self._refusal not in {"", before}:
                self._log()  # a probe names what a script does not
            raise

    @property
    def refusal(self) -> str:
        """What Redis says while it is away for us although it answers, in its own words; else empty."""
        return self._refusal if self.breaker.is_open else ""

    def _log(self) -> None:
        log = logger.bind(outage=self.breaker.opened)
        if not self.breaker.is_open:
            log.info("Redis is back")
        elif self._refusal:
            log.warning("Redis refuses to work for us; going on without it", reply=self._refusal)
        else:
            log.warning("Redis is away; going on without it", reason=self.breaker.reason)


def refusal(error: Exception) -> str:
    """Return what Redis answers, without keys and names; it names the command or the right. Empty for no answer."""
    if words := mistake(error):
        return words
    if isinstance(error, ReadOnlyError | OutOfMemoryError):
        return _text(error)[:120]
    if isinstance(error, ResponseError):
        return _text(error).partition(" ")[0][:40]  # its code; the rest can hold what a script was given
    return ""


def mistake(error: Exception) -> str:
    """Return what an operator has to mend, in words without keys and names; empty for an outage."""
    text = _text(error)
    if missing := NO_RIGHT.search(text):
        return missing[0]
    if NO_RIGHT_IN_REDIS_7 in text:
        return "has no permissions to run a command of a script"
    if isinstance(error, NoPermissionError | AuthenticationError):
        return text[:120]
    if unknown := UNKNOWN_COMMAND.search(text):
        return f"it has no command '{unknown[1].lower()}': is it renamed?"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is not trusted: name the CA by ?ssl_ca_certs="
    return NO_DATABASE if NO_DATABASE in text else ""


def _text(error: Exception) -> str:
    return str(error).rpartition("caused error: ")[2]  # before it redis-py shows a pipeline's command and its keys


def probe(client: redis.Redis) -> None:
    """Write and read once with every kind of command; raises redis.RedisError with what Redis refuses."""
    with client.pipeline(transaction=False) as pipeline:
        for command in PROBE.replace("{}", f"vestibule:probe:{uuid4().hex}").split(";"):
            pipeline.execute_command(*command.split())  # type: ignore[no-untyped-call]  # redis-py's
        pipeline.execute()
    TIME.run(client, [([], []), ([], [])])


def check(url: str) -> None:
    """Return if Redis can be used, for a start; waits for each answer as long as a call does.

    Raises BadRedisUrl, RedisRefusal for a mistake of the configuration, RedisUnavailable for an outage.
    """
    with _client(url) as client:
        try:
            probe(client)
        except (*STALLS, *REFUSALS) as error:
            if words := mistake(error):
                raise RedisRefusal(words) from None
            raise RedisUnavailable(asked=True, reply=refusal(error)) from None


class Script:
    """A Lua script: its text travels once in each round trip, since any server may have forgotten it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: redis.Redis, calls: Sequence[tuple[Sequence[str], Sequence[str | int]]]) -> list[Any]:
        """Return the result of each call, given as keys and arguments, in one round trip; raises the first error."""
        (keys, arguments), *others = calls
        with client.pipeline(transaction=False) as pipeline:
            pipeline.eval(self._text, len(keys), *keys, *arguments)
            for keys, arguments in others:
                pipeline.evalsha(self._sha, len(keys), *keys, *arguments)
            return pipeline.execute()


TIME = Script("return redis.call('TIME')")


def _client(url: str) -> redis.Redis:
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=SOCKET_SECONDS,
            socket_connect_timeout=SOCKET_SECONDS,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            health_check_interval=0,
            driver_info=None,
            max_connections=THREADS + SPARE_CONNECTIONS,
            **({} if url.startswith("unix:") else {"socket_keepalive": True}),  # a socket file knows no such option
        )
    except (ValueError, TypeError):
        raise BadRedisUrl("no redis://, rediss:// or unix:// URL of a Redis") from None
