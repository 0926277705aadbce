"""Turns rows of users into accounts, and rows of claimed mails into mails."""

from __future__ import annotations

from typing import Any

from actors.domain.code import CodeId
from actors.domain.mail import ClaimedMail, MailKind
from actors.domain.user import Account, Code, CodeMail


def account_from(row: tuple[Any, ...]) -> Account:
    """Read the columns of postgres_accounts.FIND, in their order."""
    (
        user_id, email, email_key, password_hash, locale, created_at, registration, registered_at, activated_at,
        code_id, code_expires_at, code_attempts, accepted_at, old_id, old_expires_at, old_attempts, superseded,
        code_mail, resend_at, codes_left_today, read_at,
    ) = row  # fmt: skip
    return Account(
        id=user_id,
        email=email,
        email_key=email_key,
        password_hash=password_hash.encode(),
        locale=locale,
        created_at=created_at,
        registration=registration,
        registered_at=registered_at,
        activated_at=activated_at,
        code=Code(CodeId.parse(code_id), code_expires_at, code_attempts),
        code_mail=CodeMail(code_mail),
        accepted_at=accepted_at,
        old_code=Code(CodeId.parse(old_id), old_expires_at, old_attempts) if old_id else None,
        superseded=tuple(map(CodeId.parse, superseded)),
        resend_at=resend_at,
        codes_left_today=codes_left_today,
        read_at=read_at,
    )


def mail_from(row: tuple[Any, ...]) -> ClaimedMail:
    """Read the columns of postgres_outbox.CLAIMED, in their order."""
    (
        mail_id, fence, attempt, kind, account, code_id, recipient, locale, life_left, created_at, traceparent,
        doomed, *_,
    ) = row  # fmt: skip
    return ClaimedMail(
        id=mail_id,
        fence=fence,
        attempt=attempt,
        kind=MailKind(kind),
        account=account,
        code_id=CodeId.parse(code_id) if code_id else None,
        recipient=recipient,
        locale=locale,
        life_left=life_left,
        created_at=created_at,
        traceparent=traceparent,
        doomed=doomed,
    )
