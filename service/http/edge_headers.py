"""The headers that every answer has: its id, the security headers, and CORS for the origins that are allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from service.settings import Settings

    Headers = Iterable[tuple[bytes, bytes]]

SECURITY = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",  # what may be kept says so itself
}
A_YEAR = b"max-age=31536000"
EXPOSED = (
    b"Location, Retry-After, RateLimit, RateLimit-Policy, WWW-Authenticate, X-RateLimit-Limit, X-RateLimit-Remaining, "
    b"X-RateLimit-Reset, X-Request-ID"
)
PREFLIGHT = {
    b"access-control-allow-methods": b"GET, HEAD, POST",
    b"access-control-allow-headers": b"Authorization, Content-Type, Idempotency-Key, Traceparent, X-Request-ID",
    b"access-control-max-age": b"600",
}


def values_of(scope: MutableMapping[str, Any], header: bytes) -> list[bytes]:
    """Return a request's values of a header, which is named in lower case."""
    return [value for name, value in scope["headers"] if name.lower() == header]


class EdgeHeaders:
    """Dresses answers after the settings."""

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)
        self._defaults = dict(SECURITY)
        if settings.public_url is not None and settings.public_url.startswith("https://"):
            self._defaults[b"strict-transport-security"] = A_YEAR

    def dress(self, scope: MutableMapping[str, Any], request_id: str, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Return the answer's headers with ours; a security header that the answer has already stays as it is."""
        own = [(name.lower(), value) for name, value in headers if name.lower() != b"server"]
        present = {name for name, _ in own}
        added = [(name, value) for name, value in self._defaults.items() if name not in present]
        return [*own, *added, (b"x-request-id", request_id.encode()), *self._cors(scope)]

    def _cors(self, scope: MutableMapping[str, Any]) -> list[tuple[bytes, bytes]]:
        """Allow exactly the listed origins; no credentials mode: Basic auth is a header that the page sets itself."""
        if not self._origins:
            return []
        asked = values_of(scope, b"origin")
        if len(asked) != 1 or asked[0] not in self._origins:
            return [(b"vary", b"Origin")]
        allowed = {b"access-control-allow-origin": asked[0], b"access-control-expose-headers": EXPOSED}
        if scope["method"] == "OPTIONS":
            allowed |= PREFLIGHT
        return [(b"vary", b"Origin"), *allowed.items()]
