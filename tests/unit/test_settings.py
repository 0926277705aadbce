"""Settings: every name known, every value judged, one line for each fault, and no secret in any of it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from actors.domain.windows import Rule
from service.settings import PREFIX, BadSettings, Settings, read

if TYPE_CHECKING:
    from pathlib import Path

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


def test_an_empty_environment_is_a_service() -> None:
    """Every setting has a default."""
    assert read({"PATH": "/bin", "HOME": "/"}) == Settings()
    assert Settings().bind == "127.0.0.1:8000"


def test_the_defaults_are_the_contracts() -> None:
    """Spot checks of what a client relies on."""
    made = Settings()
    assert (made.code_digits, made.code_ttl_seconds, made.code_max_age_seconds, made.code_attempts) == (6, 60, 900, 5)
    assert made.register_limit == Rule("register", 5, 3600)
    assert made.activate_limit == Rule("activate", 3, 60)
    assert made.code_limits == (Rule("codes", 5, 3600), Rule("codes", 10, 86400))
    assert (made.bcrypt_cost, made.enumeration, made.loop, made.env) == (12, "open", "uvloop", "development")
    assert made.workers >= 2


@pytest.mark.parametrize("name", ["WORKRES", "workers", "Workers", "_", "", "FILE", "WORKRES_FILE", "HTTP_PORT"])
def test_an_unknown_name_stops_the_start(name: str) -> None:
    """A typo is not a default."""
    assert fault(**{name: "3"}) == f"VESTIBULE_{name} is no setting of vestibule"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT", "80"),
        ("SERVICE_PORT_HTTP", "80"),
        ("PORT", "tcp://10.0.0.1:80"),
        ("PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("PORT_80_TCP_PROTO", "tcp"),
        ("PORT_80_TCP_PORT", "80"),
        ("PORT_80_TCP_ADDR", "10.0.0.1"),
        ("REDIS_SERVICE_HOST", "10.0.0.2"),
        ("REDIS_PORT", "tcp://10.0.0.2:6379"),
        ("MAIL_WORKER_PORT_25_TCP_ADDR", "10.0.0.3"),
        ("URL", "http://127.0.0.1:8000"),
    ],
)
def test_what_others_put_there_is_ignored(name: str, text: str) -> None:
    """Kubernetes names a Service's addresses after it, and the scripts of ops read where a service is."""
    assert settings(**{name: text}) == Settings()


def test_an_empty_value_is_an_unset_one() -> None:
    """Compose files write it so."""
    assert settings(OPS_TOKEN="", WORKERS="", DATABASE_URL="") == Settings()


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    """The blanks around it, as editors leave them, are no part of it."""
    file = tmp_path / "token"
    file.write_text(f" {SECRET}\n", encoding="utf-8")
    token = settings(OPS_TOKEN_FILE=str(file)).ops_token
    assert token is not None
    assert token.get_secret_value() == SECRET


def test_a_secret_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    """Missing, a folder, no text or empty; the line does not repeat what may be the secret itself."""
    binary, empty = tmp_path / "binary", tmp_path / "empty"
    binary.write_bytes(b"\xff\xfe")
    empty.write_text("\n", encoding="utf-8")
    for path in (SECRET, str(tmp_path), str(binary), str(empty)):
        line = fault(OPS_TOKEN_FILE=path)
        assert line.startswith("VESTIBULE_OPS_TOKEN_FILE: ")
        assert path not in line


def test_a_setting_comes_from_one_place(tmp_path: Path) -> None:
    """A value and a file for one name are a contradiction."""
    file = tmp_path / "token"
    file.write_text(SECRET, encoding="utf-8")
    line = fault(OPS_TOKEN="other", OPS_TOKEN_FILE=str(file))
    assert line == "VESTIBULE_OPS_TOKEN and VESTIBULE_OPS_TOKEN_FILE are both set: keep one"


def test_no_secret_is_shown() -> None:
    """Neither in the repr of the settings nor in the line about a neighbour."""
    made = settings(**PRODUCTION)
    assert SECRET not in repr(made)
    assert KEY not in repr(made)
    assert repr(bytes(range(32)))[2:12] not in repr(made)
    for name, text in (("WORKERS", "two"), ("BCRYPT_COST", "5"), ("CODE_MAX_AGE_SECONDS", "5")):
        line = fault(**{**PRODUCTION, name: text})
        assert SECRET not in line
        assert KEY not in line


def test_a_key_in_the_wrong_form_is_not_repeated() -> None:
    """Whoever forgets the key's id does not find the key in a log."""
    assert KEY not in fault(CODE_KEYS=KEY)
    assert KEY[:10] not in fault(CODE_KEYS=f"k1:{KEY[:10]}")


def test_production_with_all_it_needs_starts() -> None:
    """And its public address has no slash at its end."""
    made = settings(**PRODUCTION)
    assert made.public_url == "https://accounts.example.com"
    assert made.database_url is not None
    assert made.database_url.get_secret_value() == PRODUCTION["DATABASE_URL"]


@pytest.mark.parametrize("name", [name for name in PRODUCTION if name != "ENV"])
def test_production_refuses_what_is_missing(name: str) -> None:
    """Embedded servers, the mail catcher, made-up keys and open metrics are for development."""
    values = {each: text for each, text in PRODUCTION.items() if each != name}
    assert fault(**values) == f"VESTIBULE_ENV=production needs VESTIBULE_{name}"


def test_production_names_all_that_is_missing_at_once() -> None:
    """Nobody mends one to hear of the next."""
    line = fault(ENV="production")
    assert all(f"VESTIBULE_{name}" in line for name in PRODUCTION)


def test_weak_hashes_are_for_tests() -> None:
    """Below 10 only on purpose, and never in production."""
    assert "VESTIBULE_ALLOW_WEAK_HASH=1" in fault(BCRYPT_COST="4")
    assert settings(BCRYPT_COST="4", ALLOW_WEAK_HASH="1").bcrypt_cost == 4
    assert "VESTIBULE_BCRYPT_COST" in fault(**PRODUCTION, BCRYPT_COST="9", ALLOW_WEAK_HASH="1")


@pytest.mark.parametrize("bind", ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "localhost:80", "unix:/run/v.sock"])
def test_on_loopback_no_token_is_needed(bind: str) -> None:
    """Only this machine can reach it."""
    assert settings(BIND=bind).loopback


@pytest.mark.parametrize(
    "bind", ["0.0.0.0:80", ":80", "[::]:80", "192.0.2.1:80", "127.example.com:80", "example.com:80"]
)
def test_beyond_loopback_a_token_is_needed(bind: str) -> None:
    """Metrics and ops pages of a reachable service are closed."""
    assert fault(BIND=bind) == "VESTIBULE_BIND beyond loopback needs VESTIBULE_OPS_TOKEN"
    assert not settings(BIND=bind, OPS_TOKEN=SECRET).loopback


def test_a_codes_greatest_age_is_at_least_its_time() -> None:
    """A mail could never leave otherwise."""
    assert "VESTIBULE_CODE_MAX_AGE_SECONDS" in fault(CODE_MAX_AGE_SECONDS="59")
    assert settings(CODE_MAX_AGE_SECONDS="60").code_max_age_seconds == 60


def test_settings_cannot_be_changed() -> None:
    """They are read once."""
    made: Any = Settings()
    with pytest.raises(ValueError, match="frozen"):
        made.workers = 9
