"""The dashboard's session: the operators' token is exchanged once for a cookie that cannot be turned back into it.

The cookie says until when it is good, under a MAC whose key is derived from the token: no worker keeps anything, every
worker can check it, and a changed token ends all sessions. It opens the dashboard's pages and nothing else.
"""

from __future__ import annotations

import hmac
import time
from base64 import urlsafe_b64encode
from secrets import token_urlsafe
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from quart import request

from actors.domain.code import hkdf_sha256
from service.http.errors import MalformedRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from werkzeug.datastructures import Headers

    from service.http.ops_access import OpsAccess
    from service.settings import Settings

COOKIE = "vestibule_ops"
PATH = "/ops"
LIFETIME_SECONDS = 8 * 3600  # a working day; there is no list of sessions from which a stolen one could be struck
LABEL = b"vestibule ops session v1"
FOREIGN = "The form came from a page of another site."


class OpsSession:
    """Makes and checks cookies; without a token set there are none, and the rule of OpsAccess is all there is."""

    def __init__(self, settings: Settings, access: OpsAccess, now: Callable[[], float] = time.time) -> None:
        self._access = access
        self._now = now
        self._secure = settings.public_url is not None and settings.public_url.startswith("https://")
        self._public = urlsplit(settings.public_url).netloc if settings.public_url else None
        token = settings.ops_token
        self._key = None if token is None else hkdf_sha256(token.get_secret_value().encode(), LABEL)

    @property
    def needed(self) -> bool:
        """Whether operators sign in at all."""
        return self._key is not None

    def is_wanting(self) -> bool:
        """Whether the current request carries no session that is good, and no attempt at the token itself."""
        carried = "Authorization" in request.headers or self.is_good(request.cookies.get(COOKIE, ""))
        return self.needed and not carried

    async def check(self) -> None:
        """Let the current request pass, by its cookie or as OpsAccess does; raises what that raises."""
        if not self.is_good(request.cookies.get(COOKIE, "")):
            await self._access.check()

    def is_good(self, value: str) -> bool:
        """Whether a cookie's value was made under the token of today and its time is not over."""
        stated, _, mac = value.rpartition(".")
        if self._key is None or not hmac.compare_digest(self._mac(stated), mac.encode(errors="replace")):
            return False
        return self._now() < int(stated.partition(".")[0])  # only we can have written it

    def value(self) -> str:
        """Return a new cookie's value; no two are alike."""
        stated = f"{int(self._now()) + LIFETIME_SECONDS}.{token_urlsafe(12)}"
        return f"{stated}.{self._mac(stated).decode()}"

    def cookie(self, value: str, *, lifetime: int = LIFETIME_SECONDS) -> str:
        """Return the Set-Cookie header that hands a value to the current client; `lifetime` 0 takes it back."""
        told = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
        https = "https" in {request.scheme, told}
        secure = "; Secure" if self._secure or https else ""  # who forges the header gets the stricter cookie
        return f"{COOKIE}={value}; Path={PATH}; Max-Age={lifetime}; HttpOnly; SameSite=Strict{secure}"

    def check_origin(self) -> None:
        """Raise MalformedRequest for a form that a page of another site has sent, as far as the browser tells."""
        if not own_page(request.headers, self._public):
            raise MalformedRequest(FOREIGN)

    def _mac(self, stated: str) -> bytes:
        mac = hmac.digest(self._key or b"", stated.encode(errors="replace"), "sha256")
        return urlsafe_b64encode(mac).rstrip(b"=")


def own_page(headers: Headers, public: str | None) -> bool:
    """Whether a request comes from a page of ours, or from no page; `public` is PUBLIC_URL's host.

    Browsers say so in Sec-Fetch-Site where the connection is trustworthy, else in Origin; programs say neither.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = headers.get("Origin")
    return origin is None or origin.partition("://")[2] in {headers.get("Host"), public} - {None, ""}
