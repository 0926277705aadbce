"""Settings: every name known, every value checked, one line for each mistake, and no secret in any of it."""

from __future__ import annotations

import base64
from ipaddress import ip_network
from pathlib import Path

import pytest

from actors.domain.rate_limit import Rule
from service.setting_values import Trusted
from service.settings import PREFIX, Settings, SettingsError, load, shown

SECRET = "s3cret-s3cret"
KEY = base64.b64encode(bytes(range(32))).decode()
PRODUCTION = {
    "ENV": "production",
    "DATABASE_URL": f"postgresql://app:{SECRET}@db/app",
    "REDIS_URL": f"rediss://:{SECRET}@redis/0",
    "MAIL_URL": f"smtp+starttls://app:{SECRET}@mail:587",
    "OPS_TOKEN": SECRET,
    "PUBLIC_URL": "https://accounts.example.com/",
    "CODE_KEYS": f"k1:{KEY}",
}


def settings(**values: str) -> Settings:
    """Load an environment that holds these names, without their prefix."""
    return load({PREFIX + name: value for name, value in values.items()})


def fault(**values: str) -> str:
    """Return the one line that the environment is refused with."""
    with pytest.raises(SettingsError) as caught:
        settings(**values)
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return line


def test_an_empty_environment_gives_the_defaults() -> None:
    """An empty value is an unset one."""
    made = load({"PATH": "/bin", "VESTIBULE_OPS_TOKEN": "", "VESTIBULE_WORKERS": ""})
    assert made == Settings()
    assert made.workers >= 2


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("WORKRES", "WORKERS"),
        ("workers", "WORKERS"),
        ("BCRYPT_COST_", "BCRYPT_COST"),
        ("OPS_TOKN_FILE", "OPS_TOKEN"),
        ("INVALID_LIMIT", "BASIC_LIMIT"),
        ("_", None),
        ("", None),
        ("HTTP_PORT", None),
    ],
)
def test_an_unknown_name_stops_the_start(name: str, nearest: str | None) -> None:
    """A typo is not a default; the line suggests the nearest name."""
    question = f": do you mean VESTIBULE_{nearest}?" if nearest else ""
    assert fault(**{name: "3"}) == f"VESTIBULE_{name} is not a setting of Vestibule{question}"


OTHERS = {
    "our Service": ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT"],
    "its ports": ["PORT_80_TCP", "PORT_80_TCP_PROTO", "PORT_80_TCP_ADDR"],
    "other Services": ["REDIS_SERVICE_HOST", "REDIS_PORT", "MAIL_WORKER_PORT_25_TCP_ADDR"],
    "the scripts of ops": ["URL"],
}


@pytest.mark.parametrize("names", OTHERS.values(), ids=OTHERS)
def test_names_of_others_are_ignored(names: list[str]) -> None:
    """Kubernetes names a Service's addresses after it, and the scripts of ops read where a service is."""
    assert settings(**dict.fromkeys(names, "tcp://10.0.0.1:80")) == Settings()


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    """The blanks around it are no part of it; a value beside the file is a contradiction."""
    file = tmp_path / "token"
    file.write_text(f" {SECRET}\n", encoding="utf-8")
    token = settings(OPS_TOKEN_FILE=str(file)).ops_token
    assert token is not None
    assert token.get_secret_value() == SECRET
    line = fault(OPS_TOKEN="other", OPS_TOKEN_FILE=str(file))
    assert line == "VESTIBULE_OPS_TOKEN and VESTIBULE_OPS_TOKEN_FILE are both set: keep one"


def test_a_secret_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    """Missing, a folder, no text or empty; the line does not repeat what may be the secret itself."""
    binary, empty = tmp_path / "binary", tmp_path / "empty"
    binary.write_bytes(b"\xff\xfe")
    empty.write_text("\n", encoding="utf-8")
    for path in (SECRET, str(tmp_path), str(binary), str(empty)):
        line = fault(OPS_TOKEN_FILE=path)
        assert line.startswith("VESTIBULE_OPS_TOKEN_FILE: ")
        assert path not in line


def test_no_secret_is_shown() -> None:
    """Neither in the repr of the settings, nor in what is printed, nor in the line about a neighbour."""
    made = settings(**PRODUCTION)
    printed = "".join(shown(name, value) for name, value in made)
    lines = [
        fault(**{**PRODUCTION, name: text})
        for name, text in (("WORKERS", "two"), ("BCRYPT_COST", "5"), ("CODE_MAX_AGE_SECONDS", "61"))
    ]
    for text in (repr(made), printed, *lines):
        assert not any(secret in text for secret in (SECRET, KEY, repr(bytes(range(32)))[2:12]))
    assert KEY not in fault(CODE_KEYS=KEY)
    assert KEY[:10] not in fault(CODE_KEYS=f"k1:{KEY[:10]}")


def test_production_names_all_that_is_missing_at_once() -> None:
    """Embedded servers, the mail catcher, keys of its own and open metrics are for development."""
    made = settings(**PRODUCTION)
    assert made.public_url == "https://accounts.example.com"
    assert made.database_url is not None
    assert made.database_url.get_secret_value() == PRODUCTION["DATABASE_URL"]
    needed = [name for name in PRODUCTION if name != "ENV"]
    assert all(f"VESTIBULE_{name}" in fault(ENV="production") for name in needed)
    for name in needed:
        values = {each: text for each, text in PRODUCTION.items() if each != name}
        assert fault(**values) == f"VESTIBULE_ENV=production needs VESTIBULE_{name}"


def test_weak_hashes_are_for_tests() -> None:
    """Below 10 only on purpose, and never in production."""
    assert "VESTIBULE_ALLOW_WEAK_HASH=1" in fault(BCRYPT_COST="4")
    assert settings(BCRYPT_COST="4", ALLOW_WEAK_HASH="1").bcrypt_cost == 4
    assert "VESTIBULE_BCRYPT_COST" in fault(**PRODUCTION, BCRYPT_COST="9", ALLOW_WEAK_HASH="1")


LOOPBACK = ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "localhost:80", "unix:/run/vestibule.sock"]
REACHABLE = ["0.0.0.0:80", ":80", "[::]:80", "192.0.2.1:80", "127.example.com:80", "example.com:80"]


@pytest.mark.parametrize("bind", [*LOOPBACK, *REACHABLE])
def test_beyond_loopback_a_token_is_needed(bind: str) -> None:
    """Metrics and ops pages of a reachable service are closed."""
    token = {} if bind in LOOPBACK else {"OPS_TOKEN": SECRET}
    assert settings(BIND=bind, **token).loopback is (bind in LOOPBACK)
    if token:
        assert fault(BIND=bind) == "VESTIBULE_BIND beyond loopback needs VESTIBULE_OPS_TOKEN"


def test_a_codes_greatest_age_leaves_time_for_its_mail() -> None:
    """At least a minute more than the code's own time."""
    assert "VESTIBULE_CODE_MAX_AGE_SECONDS" in fault(CODE_MAX_AGE_SECONDS="119")
    assert settings(CODE_MAX_AGE_SECONDS="120").code_max_age_seconds == 120


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MAX_REQUESTS", "0", 0),
        ("DATA_DIR", "/var/lib/vestibule", Path("/var/lib/vestibule")),
        ("BIND", "[::1]:8000", "[::1]:8000"),
        ("BIND", "localhost:0", "localhost:0"),
        ("REGISTER_LIMIT", "7/day", Rule("register", 7, 86400)),
        ("PASSWORD_CLIENT_LIMIT", "1/second", Rule("password-client", 1, 1)),
        ("BASIC_LIMIT", "off", None),
        ("CODE_LIMITS", "off", ()),
        ("CODE_LIMITS", "2/minute, 3/hour", (Rule("codes", 2, 60), Rule("codes", 3, 3600))),
        ("TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8", Trusted((ip_network("10.0.0.0/8"), ip_network("fd00::/8")))),
        ("TRUSTED_PROXIES", "192.0.2.1,unix", Trusted((ip_network("192.0.2.1/32"),), unix=True)),
        ("MAIL_EHLO", "mail.example.com", "mail.example.com"),
        ("MAIL_EHLO", "[192.0.2.1]", "[192.0.2.1]"),
        ("CORS_ORIGINS", "https://App.example.com/, http://[::1]:3", ("https://app.example.com", "http://[::1]:3")),
        ("PUBLIC_URL", "https://example.com/accounts/", "https://example.com/accounts"),
        ("CODE_KEYS", f"k2:{KEY},k1:{KEY}", {"k2": bytes(range(32)), "k1": bytes(range(32))}),
    ],
)
def test_a_value_is_read_from_its_text(name: str, text: str, value: object) -> None:
    """What an operator writes becomes what the program uses."""
    assert getattr(settings(**{name: text}), name.lower()) == value


BAD = {
    "ENV": ["staging"],
    "WORKERS": ["0", "two"],
    "MAIL_WORKERS": ["65"],
    "LOOP": ["gevent"],
    "MAX_REQUESTS": ["-1"],
    "GRACE_SECONDS": ["0"],
    "KEEP_ALIVE_SECONDS": ["0", "long"],
    "BIND": ["8000", "localhost", "localhost:http", "127.0.0.1:65536", "::1:8000", "unix:"],
    "BCRYPT_COST": ["3", "17"],
    "ALLOW_WEAK_HASH": ["perhaps"],
    "CODE_DIGITS": ["3", "11"],
    "CODE_TTL_SECONDS": ["0", "3601"],
    "CODE_MAX_AGE_SECONDS": ["60", "86401"],
    "CODE_ATTEMPTS": ["21"],
    "REGISTER_LIMIT": ["5", "5/week", "0/hour", "-1/hour", "\uff15/hour", "1000001/hour"],
    "CODE_LIMITS": ["5/hour,off", ",", "5/hour;10/day"],
    "TRUSTED_PROXIES": ["10.0.0.1/8", "proxy"],
    "CORS_ORIGINS": [
        *("*", "app.example.com", "https://app.example.com/path", "https://*.example.com"),
        *("https://app.example.com:port", "https://app.example.com:443", "http://app.example.com:80"),
        "https://bücher.example",
    ],
    "PUBLIC_URL": [
        *("accounts.example.com", "ftp://example.com", "https://user@example.com", "https://example.com/?q"),
        *("https://exam ple.com", "https://[broken", "https:///path"),
    ],
    "ENUMERATION": ["closed"],
    "LOG_LEVEL": ["LOUD"],
    "MAIL_FROM": ["nobody", "a@example.com\nBcc: b@example.com"],
    "MAIL_EHLO": ["two words", "host\r\nQUIT", "[", "_"],
    "CODE_KEYS": [
        *(KEY, f"k1:{KEY},k1:{KEY}", f"a key:{KEY}", "k1:not base64"),
        f"k1:{base64.b64encode(bytes(31)).decode()}",
    ],
    "OPS_TOKEN": ["two words", "tab\there", "sch\u00f6n", "line\nbreak"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_bad_value_stops_the_start_with_one_line(name: str, text: str) -> None:
    """The line begins with the setting's name and is no traceback."""
    line = fault(**{name: text})
    assert line.startswith(f"VESTIBULE_{name}: ")
    assert name != "OPS_TOKEN" or text not in line


@pytest.mark.parametrize(
    ("name", "schemes"),
    [("DATABASE_URL", "postgresql://"), ("REDIS_URL", "rediss://"), ("MAIL_URL", "smtp+starttls://")],
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
