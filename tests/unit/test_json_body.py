from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.json_body import check_media, checked, parse
from service.http.problems import InvalidFields, MalformedRequest, RequestRefused, UnsupportedMedia
from service.http.schemas import RegisterRequest

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_an_object_comes_through_as_it_is(members: dict[str, object]) -> None:
    """Whatever object JSON can say is read as any other reader would read it."""
    assert parse(json.dumps(members).encode()) == members
    assert parse(json.dumps(members, ensure_ascii=False).encode()) == members


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0dD8 \n1eE+-.NaInfity', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Bytes give an object or MalformedRequest, never another error."""
    try:
        value = parse(raw)
    except MalformedRequest:
        return
    json.dumps(value, ensure_ascii=False, allow_nan=True).encode()


@given(st.dictionaries(st.sampled_from(["email", "password", "locale", "x", "\x00", "é" * 40]), VALUES))
def test_any_object_is_a_registration_or_names_its_fields(members: dict[str, object]) -> None:
    """Members give a request or InvalidFields whose text holds none of the values."""
    found: Sequence[tuple[str, str]] = ()
    try:
        checked(RegisterRequest, members)
    except InvalidFields as refused:
        found = refused.errors
    assert bool(found) or members.keys() <= {"email", "password", "locale"}
    assert all("\x00" not in name and len(name) < 33 for name, _ in found)


MALFORMED = {
    "nothing": [b"", b" \n ", b"\0" * 100],
    "not an object": [b"null", b"[]", b'"text"', b"1", b"{", b"{}{}", b"{'a':1}", b'{"a":1,}', b"a=1"],
    "not UTF-8": [b'{"a":"\xff"}', b'{"a":"\xc0\xaf"}', b'{"a":"\xed\xa0\x80"}', '{"a":1}'.encode("utf-16")],
    "a byte order mark": [b'\xef\xbb\xbf{"a":1}'],
    "no number": [b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":' + b"1" * 5000 + b"}"],
    "a name twice": [b'{"a":1,"a":1}', b'{"a":1,"\\u0061":1}', b'{"a":{"b":1,"b":2}}', b'{"a":[{"b":1,"b":2}]}'],
    "half a pair": [b'{"a":"\\ud800"}', b'{"\\udfff":1}'],
    "half a pair, deep inside": [b'{"a":[{"b":["\\ud83d"]}]}'],
    "a raw control character": [b'{"a":"\x01"}'],
    "too many brackets": [b"[" * 16_000, b'{"a":' * 3000],
}


@pytest.mark.parametrize("raw", [raw for raws in MALFORMED.values() for raw in raws])
def test_what_is_not_one_plain_object_is_malformed(raw: bytes) -> None:
    """The reason is a sentence about the body."""
    with pytest.raises(MalformedRequest) as refused:
        parse(raw)
    assert str(refused.value.reason).startswith("The body ")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
        (b' \n{"a" : 1e400}\t', {"a": float("inf")}),
        (b'{"a":"' + b"[{" * 40 + b'\\""}', {"a": "[{" * 40 + '"'}),
        (b'{"a":"\\u0000"}', {"a": "\0"}),
    ],
)
def test_what_json_allows_is_read(raw: bytes, value: object) -> None:
    """Whole pairs, brackets within strings and control characters within strings are the fields' business."""
    assert parse(raw) == value


@pytest.mark.parametrize(
    ("types", "codings"),
    [
        ([], []),
        (["application/json"] * 2, []),
        *(([text], []) for text in ("", "text/plain", "application/x-www-form-urlencoded", "application/vnd.api+json")),
        *(([text], []) for text in ("application/jsonp", "application/json, application/json")),
        *(([f"application/json; charset={name}"], []) for name in ("latin-1", "utf-16", "nothing", "\u00ff")),
        *((["application/json"], codings) for codings in (["gzip"], ["identity", "br"], ["gzip, identity"])),
    ],
)
def test_other_media_are_refused(types: list[str], codings: list[str]) -> None:
    """Anything but one application/json in UTF-8 without content coding is unsupported."""
    with pytest.raises(UnsupportedMedia):
        check_media(types, codings)


@pytest.mark.parametrize(
    "media", ["Application/JSON", 'application/json; charset="UTF-8"', "application/json;charset=utf8"]
)
def test_json_in_utf8_is_taken(media: str) -> None:
    """Case and quotes of the media type do not matter, and the coding `identity` is none."""
    check_media([media], ["identity"])


@given(st.lists(st.text(max_size=40), max_size=3), st.lists(st.text(max_size=10), max_size=2))
def test_any_media_headers_are_taken_or_refused(types: list[str], codings: list[str]) -> None:
    """No header makes the gate fail otherwise."""
    try:
        check_media(types, codings)
    except RequestRefused:
        return
    assert types[0].lower().startswith("application/json")


@pytest.mark.parametrize(
    ("members", "field", "message"),
    [
        ({"password": None}, "password", "must be a string"),
        *(({"email": value}, "email", "must be a string") for value in (42, None, ["a@b.c"], {"$ne": ""})),
        *(({name: 1}, name, "is not a field of this request") for name in ("is_admin", "is_activated")),
        *(({name: {}}, "(unnamed)", "is not a field of this request") for name in ("", "$where", "__proto__")),
        ({"<script>": 1}, "(unnamed)", "is not a field of this request"),
        ({"email": "a\x00@b.c"}, "email", "must not hold control characters"),
        *(({"password": f"x{c}"}, "password", "must not hold control characters") for c in "\0\x1b\x7f\x9b"),
        ({"locale": 1}, "locale", "must be a string"),
        *(
            ({"locale": text}, "locale", "must be a language tag such as en or de-AT")
            for text in ("e n", "../x", "en" + "-abcdefgh" * 500 + "-")
        ),
    ],
)
def test_wrong_fields_are_named(members: dict[str, object], field: str, message: str) -> None:
    """Each wrong field has a sentence; a name that is no name is not repeated."""
    with pytest.raises(InvalidFields) as refused:
        checked(RegisterRequest, {"email": "a@b.c", "password": "x", **members})
    assert refused.value.errors == [(field, message)]
    with pytest.raises(InvalidFields) as refused:
        checked(RegisterRequest, {"email": "a@b.c"})
    assert refused.value.errors == [("password", "is required")]


def test_a_request_does_not_show_its_password() -> None:
    """Neither repr nor text of a registration holds the password."""
    request = checked(RegisterRequest, {"email": "a@b.c", "password": "hunter2hunter2"})
    assert "hunter2" not in repr(request) + str(request)
