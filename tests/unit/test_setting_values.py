"""The values of settings: how they are read from text, and what is refused."""

from __future__ import annotations

import base64
from ipaddress import ip_network
from pathlib import Path

import pytest

from actors.domain.windows import Rule
from service.settings import PREFIX, BadSettings, Settings, read

SECRET = "s3cret-s3cret"
KEY = base64.b64encode(bytes(range(32))).decode()


def settings(**values: str) -> Settings:
    """Read an environment that holds these names, without their prefix."""
    return read({PREFIX + name: value for name, value in values.items()})


def fault(**values: str) -> str:
    """Return the one line that the environment is refused with."""
    with pytest.raises(BadSettings) as caught:
        settings(**values)
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return line


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("WORKERS", "3", 3),
        ("LOOP", "trio", "trio"),
        ("MAX_REQUESTS", "0", 0),
        ("DATA_DIR", "/var/lib/vestibule", Path("/var/lib/vestibule")),
        ("BIND", "unix:/run/vestibule.sock", "unix:/run/vestibule.sock"),
        ("BIND", "[::1]:8000", "[::1]:8000"),
        ("BIND", "localhost:0", "localhost:0"),
        ("REGISTER_LIMIT", "7/day", Rule("register", 7, 86400)),
        ("PASSWORD_CLIENT_LIMIT", "1/second", Rule("password-client", 1, 1)),
        ("BASIC_LIMIT", "off", None),
        ("CODE_LIMITS", "off", ()),
        ("CODE_LIMITS", "2/minute, 3/hour", (Rule("codes", 2, 60), Rule("codes", 3, 3600))),
        ("TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8", (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
        ("TRUSTED_PROXIES", "192.0.2.1", (ip_network("192.0.2.1/32"),)),
        (
            "CORS_ORIGINS",
            "https://App.example.com/, http://localhost:3000",
            ("https://app.example.com", "http://localhost:3000"),
        ),
        ("PUBLIC_URL", "https://example.com/accounts/", "https://example.com/accounts"),
        ("CODE_KEYS", f"k2:{KEY},k1:{KEY}", {"k2": bytes(range(32)), "k1": bytes(range(32))}),
        ("MAIL_FROM", "Shop <shop@example.com>", "Shop <shop@example.com>"),
        ("LOG_FORMAT", "text", "text"),
    ],
)
def test_a_value_is_read_from_its_text(name: str, text: str, value: object) -> None:
    """What an operator writes becomes what the program uses."""
    assert getattr(settings(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ENV", "staging"),
        ("WORKERS", "0"),
        ("WORKERS", "two"),
        ("MAIL_WORKERS", "65"),
        ("LOOP", "gevent"),
        ("MAX_REQUESTS", "-1"),
        ("GRACE_SECONDS", "0"),
        ("BIND", "8000"),
        ("BIND", "localhost"),
        ("BIND", "localhost:http"),
        ("BIND", "127.0.0.1:65536"),
        ("BIND", "::1:8000"),
        ("BIND", "unix:"),
        ("BCRYPT_COST", "3"),
        ("BCRYPT_COST", "17"),
        ("ALLOW_WEAK_HASH", "perhaps"),
        ("CODE_DIGITS", "3"),
        ("CODE_DIGITS", "11"),
        ("CODE_TTL_SECONDS", "0"),
        ("CODE_ATTEMPTS", "21"),
        ("REGISTER_LIMIT", "5"),
        ("REGISTER_LIMIT", "5/week"),
        ("REGISTER_LIMIT", "0/hour"),
        ("REGISTER_LIMIT", "-1/hour"),
        ("REGISTER_LIMIT", "\uff15/hour"),
        ("REGISTER_LIMIT", "1000001/hour"),
        ("CODE_LIMITS", "5/hour,off"),
        ("CODE_LIMITS", ","),
        ("CODE_LIMITS", "5/hour;10/day"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("TRUSTED_PROXIES", "proxy"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "app.example.com"),
        ("CORS_ORIGINS", "https://app.example.com/path"),
        ("CORS_ORIGINS", "https://*.example.com"),
        ("CORS_ORIGINS", "https://app.example.com:port"),
        ("CORS_ORIGINS", "https://app.example.com:443"),
        ("CORS_ORIGINS", "http://app.example.com:80"),
        ("CORS_ORIGINS", "https://bücher.example"),
        ("PUBLIC_URL", "accounts.example.com"),
        ("PUBLIC_URL", "ftp://example.com"),
        ("PUBLIC_URL", "https://user@example.com"),
        ("PUBLIC_URL", "https://example.com/?q"),
        ("PUBLIC_URL", "https://exam ple.com"),
        ("PUBLIC_URL", "https://[broken"),
        ("PUBLIC_URL", "https:///path"),
        ("ENUMERATION", "closed"),
        ("LOG_LEVEL", "LOUD"),
        ("MAIL_FROM", "nobody"),
        ("MAIL_FROM", "a@example.com\nBcc: b@example.com"),
        ("CODE_KEYS", KEY),
        ("CODE_KEYS", f"k1:{KEY},k1:{KEY}"),
        ("CODE_KEYS", f"a key:{KEY}"),
        ("CODE_KEYS", "k1:not base64"),
        ("CODE_KEYS", f"k1:{base64.b64encode(bytes(31)).decode()}"),
    ],
)
def test_a_bad_value_stops_the_start_with_one_line(name: str, text: str) -> None:
    """The line begins with the setting's name and is no traceback."""
    assert fault(**{name: text}).startswith(f"VESTIBULE_{name}: ")


@pytest.mark.parametrize(
    ("name", "schemes"),
    [
        ("DATABASE_URL", "postgresql://"),
        ("REDIS_URL", "rediss://"),
        ("MAIL_URL", "smtp+starttls://"),
    ],
)
@pytest.mark.parametrize("text", [f"mysql://app:{SECRET}@db/app", SECRET, f"//{SECRET}", f"http://[{SECRET}"])
def test_a_servers_url_is_known_by_its_scheme(name: str, schemes: str, text: str) -> None:
    """The line says what is understood, and nothing of what was given."""
    line = fault(**{name: text})
    assert schemes in line
    assert SECRET not in line


@pytest.mark.parametrize("mark", "@/")
def test_a_password_that_would_be_taken_for_a_host_is_refused_unshown(mark: str) -> None:
    """What stands behind such a character in the password would be named as the host that is not found."""
    line = fault(DATABASE_URL=f"postgresql://app:s3{mark}cret@db/app")
    assert "percent-encoded" in line
    assert "cret" not in line
    for encoded in ("%40", "%2F", "#"):
        assert settings(DATABASE_URL=f"postgresql://app:s3{encoded}cret@db/app?user=a@b").database_url is not None


@pytest.mark.parametrize("token", ["two words", "tab\there", "sch\u00f6n", "line\nbreak"])
def test_a_token_that_no_bearer_header_can_carry_is_refused_unshown(token: str) -> None:
    """Nobody could ever present it; the line tells how to make one and does not repeat it."""
    line = fault(OPS_TOKEN=token)
    assert line.startswith("VESTIBULE_OPS_TOKEN: must be visible ASCII")
    assert token not in line
