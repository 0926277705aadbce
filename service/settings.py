"""Every setting of the service: read once from the environment, validated, and never looked up again."""

from __future__ import annotations

import base64
import os
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from actors.domain.windows import Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "VESTIBULE_"
PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
KEY_BYTES = 32  # of a code key: as many as the hash it keys
MODEST_COST = 10  # bcrypt below it is for tests (OWASP: work factor 10 or more)
KUBERNETES_NAMES = re.compile(r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


class BadSettings(Exception):
    """The environment does not describe a service; the text is one line that says what to mend."""


def rule(name: str, text: str) -> Rule | None:
    """Read `5/hour` or `off`; raises ValueError."""
    if text == "off":
        return None
    amount, _, period = text.partition("/")
    if not amount.isascii() or not amount.isdigit() or not 1 <= int(amount) <= 1_000_000 or period not in PERIODS:
        msg = "must be N/second, N/minute, N/hour, N/day or off"
        raise ValueError(msg)
    return Rule(name, int(amount), PERIODS[period])


def _rule(name: str) -> BeforeValidator:
    return BeforeValidator(lambda value: rule(name, value) if isinstance(value, str) else value)


def _rules(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value == "off":
        return ()
    return tuple(filter(None, (rule("codes", part.strip()) for part in value.split(","))))


def _networks(value: object) -> object:
    return (
        tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())
        if isinstance(value, str)
        else value
    )


def _origins(value: object) -> object:
    return (
        tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
        if isinstance(value, str)
        else value
    )


def _keys(value: object) -> object:
    """Read `kid:base64,…`; each key at least 32 bytes."""
    if not isinstance(value, str):
        return value
    keys: dict[str, bytes] = {}
    for part in value.split(","):
        kid, colon, encoded = part.strip().partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9_-]{1,16}", kid) or kid in keys:
            msg = "must be kid:base64,… with different key ids of letters, digits, - and _"
            raise ValueError(msg)
        try:
            keys[kid] = base64.b64decode(encoded, validate=True)
        except ValueError:
            msg = f"key {kid} is not base64"
            raise ValueError(msg) from None
        if len(keys[kid]) < KEY_BYTES:
            msg = f"key {kid} has fewer than {KEY_BYTES} bytes; make one with: openssl rand -base64 32"
            raise ValueError(msg)
    return keys


Limit = Rule | None
CodeKeys = Annotated[dict[str, bytes], BeforeValidator(_keys)]


class Settings(BaseModel):
    """All settings, by the names of the environment without their prefix, in lower case."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    env: Literal["development", "production"] = "development"
    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    mail_url: SecretStr | None = None
    mail_from: str = "no-reply@localhost"
    mail_templates: Path | None = None
    public_url: str | None = None
    data_dir: Path = Path(".vestibule")
    bind: str = "127.0.0.1:8000"
    workers: int = Field(default_factory=lambda: max(2, os.cpu_count() or 1), ge=1, le=256)
    mail_workers: int = Field(1, ge=1, le=64)
    loop: Literal["uvloop", "asyncio", "trio"] = "uvloop"
    max_requests: int = Field(10_000, ge=0)
    drain_seconds: int = Field(0, ge=0, le=3600)
    grace_seconds: int = Field(30, ge=1, le=3600)
    code_keys: CodeKeys | None = Field(None, repr=False)
    bcrypt_cost: int = Field(12, ge=4, le=16)
    allow_weak_hash: bool = False
    code_digits: int = Field(6, ge=4, le=10)
    code_ttl_seconds: int = Field(60, ge=1, le=3600)
    code_max_age_seconds: int = Field(900, ge=1, le=86400)
    code_attempts: int = Field(5, ge=1, le=20)
    register_limit: Annotated[Limit, _rule("register")] = Rule("register", 5, 3600)
    activate_limit: Annotated[Limit, _rule("activate")] = Rule("activate", 3, 60)
    password_limit: Annotated[Limit, _rule("password")] = Rule("password", 3, 60)
    password_client_limit: Annotated[Limit, _rule("password-client")] = Rule("password-client", 30, 60)
    invalid_limit: Annotated[Limit, _rule("invalid")] = Rule("invalid", 60, 60)
    basic_limit: Annotated[Limit, _rule("basic")] = Rule("basic", 20, 60)
    code_limits: Annotated[tuple[Rule, ...], BeforeValidator(_rules)] = (
        Rule("codes", 5, 3600),
        Rule("codes", 10, 86400),
    )
    resend_cooldown_seconds: int = Field(30, ge=0, le=86400)
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_networks)] = ()
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_origins)] = ()
    enumeration: Literal["open", "strict"] = "open"
    ops_token: SecretStr | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "json"

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if self.code_max_age_seconds < self.code_ttl_seconds:
            msg = "VESTIBULE_CODE_MAX_AGE_SECONDS must be at least VESTIBULE_CODE_TTL_SECONDS"
            raise ValueError(msg)
        if self.bcrypt_cost < MODEST_COST and not self.allow_weak_hash:
            msg = f"VESTIBULE_BCRYPT_COST below {MODEST_COST} needs VESTIBULE_ALLOW_WEAK_HASH=1"
            raise ValueError(msg)
        if not self.loopback and self.ops_token is None:
            msg = "VESTIBULE_BIND beyond loopback needs VESTIBULE_OPS_TOKEN"
            raise ValueError(msg)
        if self.env == "production":
            self._production()
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the listener."""
        host = self.bind.rpartition(":")[0].strip("[]")
        return self.bind.startswith("unix:") or host in {"localhost", "::1"} or host.startswith("127.")

    def _production(self) -> None:
        needed = ("database_url", "redis_url", "mail_url", "ops_token", "public_url", "code_keys")
        missing = [PREFIX + name.upper() for name in needed if getattr(self, name) is None]
        if missing:
            msg = f"VESTIBULE_ENV=production needs {', '.join(missing)}"
            raise ValueError(msg)
        if self.bcrypt_cost < MODEST_COST:
            msg = f"VESTIBULE_ENV=production refuses VESTIBULE_BCRYPT_COST below {MODEST_COST}"
            raise ValueError(msg)


def read(environment: Mapping[str, str]) -> Settings:
    """Return the settings that the environment describes; raises BadSettings with one line."""
    values: dict[str, Any] = {}
    for variable, value in environment.items():
        if variable.startswith(PREFIX):
            _take(values, variable, value)
    try:
        return Settings(**values)
    except ValidationError as error:
        raise BadSettings(_one_line(error)) from None


def _take(values: dict[str, Any], variable: str, value: str) -> None:
    name = variable.removeprefix(PREFIX)
    field = name.lower()
    if field in Settings.model_fields:
        values[field] = value
    elif field.removesuffix("_file") in Settings.model_fields and field.endswith("_file"):
        if PREFIX + name.removesuffix("_FILE") == variable:
            return
        try:
            values[field.removesuffix("_file")] = Path(value).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{variable}: cannot read {value}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
            raise BadSettings(msg) from None
    elif name != "URL" and not KUBERNETES_NAMES.fullmatch(name):
        msg = f"{variable} is no setting of vestibule"
        raise BadSettings(msg)


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
    if not first["loc"]:
        return message
    return f"{PREFIX}{str(first['loc'][0]).upper()}: {message}"
