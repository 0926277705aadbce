"""What happens to an account's codes once its password was right: redeemed, explained, issued anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never
from uuid import uuid4

from actors.code_issuer import Issue, Redeem
from actors.domain.errors import (
    AlreadyActivated,
    CodeAttemptsExhausted,
    CodeExpired,
    CodesExhausted,
    InvalidCredentials,
    RequestInProgress,
    ResendTooSoon,
    WrongCode,
)
from actors.forms import Activation, Resend
from actors.kit.mailbox import MachineError
from actors.ports import Missed, NewCode, Redeemed, Redemption
from actors.user_registry import Find

if TYPE_CHECKING:
    from actors.access import Entry
    from actors.domain.code import CodeId
    from actors.domain.user import Account
    from actors.forms import Rules, Visit
    from actors.kit.mailbox import Address
    from actors.shadows import Shadows

LOOKS = 8  # an account that changes under so many tries in a row is being played with


class CodeFlows:
    """Redeems and reissues over the CodeIssuer and the UserRegistry; the caller has checked password and limits."""

    def __init__(self, registry: Address, issuer: Address, rules: Rules, shadows: Shadows | None = None) -> None:
        self._registry = registry
        self._shadows = shadows
        self._issuer = issuer
        self._rules = rules
        self._keyring = rules.keyring

    async def redeem(self, account: Account, typed: str) -> Activation:
        """Try the typed code, and look again when the account has changed in between.

        Raises AlreadyActivated, WrongCode, CodeExpired or CodeAttemptsExhausted.
        """
        redeem_id = uuid4()
        for _ in range(LOOKS):
            live = tuple(code.id for code in account.live_codes(self._rules.attempts))
            hit = self._hit(account, live, typed)
            if hit is None:
                self._explain(account, typed)
            redemption = Redemption(account.id, account.password_hash, live, hit, redeem_id)
            outcome = await self._issuer.ask(Redeem(redemption))
            match outcome:
                case Redeemed(activated_at):
                    return Activation(account.email, activated_at)
                case Missed(attempts_left):
                    raise WrongCode(attempts_left)
                case None:
                    account = await self._again(account)
                case _:
                    assert_never(outcome)
        raise RequestInProgress(1)

    def _hit(self, account: Account, live: tuple[CodeId, ...], typed: str) -> CodeId | None:
        hits = [code_id for code_id in live if self._keyring.matches(account.id, code_id, typed)]
        return hits[0] if hits else None

    def _explain(self, account: Account, typed: str) -> None:
        """Raise what ends the try before it costs an attempt; return when the typed code must be counted."""
        if account.activated_at is not None:
            raise AlreadyActivated
        attempts_left = account.attempts_left(self._rules.attempts)
        dead = [*account.superseded, *([account.old_code.id] if account.old_code else [])]
        if self._keyring.any_matches(account.id, dead, typed):
            raise WrongCode(attempts_left, superseded=True)
        if account.live_codes(self._rules.attempts):
            return
        if account.code.attempts >= self._rules.attempts:
            raise CodeAttemptsExhausted(account.resend_in())
        raise CodeExpired

    async def _again(self, account: Account) -> Account:
        """Look the account up once more; who no longer has its password hears what a wrong password hears."""
        if self._shadows is not None:
            found = await self._shadows.again(account)
        else:
            found = await self._registry.ask(Find(account.email_key))
        if found is None or found.password_hash != account.password_hash:
            raise InvalidCredentials
        return found

    async def reissue(self, visit: Visit, account: Account, entry: Entry) -> Resend:
        """Give the account a new code, or give `entry` back and raise what stands against it."""
        code = NewCode(
            account=account.id,
            password_hash=account.password_hash,
            code_id=self._keyring.code_id(uuid4()),
            mail_id=uuid4(),
            locale=None,
            traceparent=visit.traceparent,
        )
        try:
            resent = await self._issuer.ask(Issue(code))
        except MachineError:
            entry.give_back_all()
            raise
        if resent is None:
            entry.give_back_all()
            self.check_resend(await self._again(account))
            raise ResendTooSoon(1)  # it was too soon when it was decided
        return Resend(account.email, resent.resend_in, resent.codes_left_today)

    def check_resend(self, account: Account) -> None:
        """Raise what stands against a new code now."""
        if account.activated_at is not None:
            raise AlreadyActivated
        self.check_budget(account)
        if account.resend_in() > 0:
            raise ResendTooSoon(account.resend_in())

    def check_budget(self, account: Account) -> None:
        """Raise CodesExhausted when the address has had its codes: no cool-down makes anyone wait for longer."""
        wait = account.resend_in()
        if wait > self._rules.cooldown:
            raise CodesExhausted(wait)
