"""Requests that no handler should see, because servers disagree about them or because nobody needs them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from service.http.edge_headers import values_of
from service.http.errors import AmbiguousLength, HeadersTooLarge, MalformedRequest, MethodRefused, UnknownPath

if TYPE_CHECKING:
    from collections.abc import MutableMapping

MOST_HEADER_BYTES = 16 * 1024  # of the request target and all headers: Basic auth and a token need one
MOST_HEADERS = 100
BREAKS = re.compile(rb"[\r\n\0]")  # servers refuse them; ours might not always be the same server
HOST = re.compile(  # what a host cannot be called (RFC 1123, 2.1) is no request's Host (RFC 9112, 3.2)
    rb"(?:(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{0,5})?"
)
METHODS = ("GET", "HEAD", "OPTIONS", "POST")


def check(scope: MutableMapping[str, Any]) -> None:
    """Raise a RequestRefused for such a request; bring an absolute target (RFC 9112, 3.2.2) down to its path."""
    _check_size(scope)
    if scope["type"] != "http":  # there are no WebSockets here
        raise UnknownPath
    if not scope["http_version"].startswith("1."):
        raise MalformedRequest("The request is not HTTP/1.1.")
    if scope["method"] == "CONNECT":
        raise MethodRefused(METHODS)
    names = {name.lower() for name, _ in scope["headers"]}
    if b"transfer-encoding" in names and b"content-length" in names:  # RFC 9112, 6.3: request smuggling
        raise AmbiguousLength
    if any(BREAKS.search(value) for _, value in scope["headers"]):
        raise MalformedRequest("A header holds a line break.")
    if not all(map(HOST.fullmatch, values_of(scope, b"host"))):
        raise MalformedRequest("The Host is none.")
    if not scope["path"].startswith("/"):
        scope["path"] = _path_of(scope["path"])
    if scope["path"].startswith("//"):  # the router would read it as a path with one slash, a proxy in front would not
        raise UnknownPath


def _check_size(scope: MutableMapping[str, Any]) -> None:
    headers = scope["headers"]
    target = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    if len(headers) > MOST_HEADERS or target + sum(len(n) + len(v) for n, v in headers) > MOST_HEADER_BYTES:
        raise HeadersTooLarge


def _path_of(target: str) -> str:
    try:
        parts = urlsplit(target)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"}:
        raise MalformedRequest("The request's target is not a path.")
    return parts.path or "/"
