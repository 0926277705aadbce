"""Every setting of the service: read once from the environment, validated, and never looked up again."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from actors.domain.rate_limit import Rule
from actors.domain.user import CodePolicy
from service.setting_values import (
    PERIODS,
    Bind,
    CodeKeys,
    CodeLimits,
    DatabaseUrl,
    HostName,
    MailUrl,
    Origins,
    RedisUrl,
    Sender,
    Token,
    Trusted,
    TrustedProxies,
    WebAddress,
    is_loopback,
    limit,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "VESTIBULE_"
MODEST_COST = 10  # bcrypt below it is for tests (OWASP: work factor 10 or more)
FOR_THE_SCRIPTS: Final = "URL"  # VESTIBULE_URL tells ops/ where a service is; it is no setting of ours
# What Kubernetes injects for a Service whose name begins with ours.
KUBERNETES_NAME: Final = re.compile(
    r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|PORT(?==(tcp|udp|sctp)://))=.*",
    re.DOTALL,
)


class SettingsError(Exception):
    """The environment does not describe a service; the text is one line that says what to change."""


class Settings(BaseModel):
    """All settings, by the names of the environment without their prefix, in lower case."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    env: Literal["development", "production"] = "development"
    database_url: DatabaseUrl | None = None
    redis_url: RedisUrl | None = None
    mail_url: MailUrl | None = None
    mail_from: Sender = "no-reply@localhost"
    mail_templates: Path | None = None
    mail_ehlo: HostName | None = None
    public_url: WebAddress | None = None
    data_dir: Path = Path(".vestibule")
    bind: Bind = "127.0.0.1:8000"
    keep_alive_seconds: int = Field(75, ge=1, le=3600)
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
    code_max_age_seconds: int = Field(900, ge=61, le=86400)
    code_attempts: int = Field(5, ge=1, le=20)
    register_limit: Annotated[Rule | None, limit("register")] = Rule("register", 5, 3600)
    activate_limit: Annotated[Rule | None, limit("activate")] = Rule("activate", 3, 60)
    password_limit: Annotated[Rule | None, limit("password")] = Rule("password", 3, 60)
    password_client_limit: Annotated[Rule | None, limit("password-client")] = Rule("password-client", 30, 60)
    basic_limit: Annotated[Rule | None, limit("basic")] = Rule("basic", 20, 60)
    code_limits: CodeLimits = (Rule("codes", 5, 3600), Rule("codes", 10, 86400))
    resend_cooldown_seconds: int = Field(30, ge=0, le=86400)
    trusted_proxies: TrustedProxies = Trusted()
    cors_origins: Origins = ()
    enumeration: Literal["open", "strict"] = "open"
    ops_token: Token | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "json"

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if self.code_max_age_seconds < self.code_ttl_seconds + 60:
            raise ValueError("VESTIBULE_CODE_MAX_AGE_SECONDS must be at least VESTIBULE_CODE_TTL_SECONDS and 60 more")
        if self.bcrypt_cost < MODEST_COST and not self.allow_weak_hash:
            raise ValueError(f"VESTIBULE_BCRYPT_COST below {MODEST_COST} needs VESTIBULE_ALLOW_WEAK_HASH=1")
        if not self.loopback and self.ops_token is None:
            msg = "VESTIBULE_BIND beyond loopback needs VESTIBULE_OPS_TOKEN"
            raise ValueError(msg)
        if self.env == "production":
            self._production()
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the listener."""
        return is_loopback(self.bind)

    @property
    def root(self) -> str:
        """The path of PUBLIC_URL that the service lies under, without a slash at its end; mostly empty."""
        return urlsplit(self.public_url).path.rstrip("/") if self.public_url else ""

    @property
    def code_policy(self) -> CodePolicy:
        """What the operator allows of codes."""
        return CodePolicy(
            attempts=self.code_attempts,
            ttl_seconds=self.code_ttl_seconds,
            max_age_seconds=self.code_max_age_seconds,
            cooldown_seconds=self.resend_cooldown_seconds,
            budgets=self.code_limits,
        )

    def _production(self) -> None:
        needed = ("database_url", "redis_url", "mail_url", "ops_token", "public_url", "code_keys")
        missing = [PREFIX + name.upper() for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"VESTIBULE_ENV=production needs {', '.join(missing)}")
        if self.bcrypt_cost < MODEST_COST:
            raise ValueError(f"VESTIBULE_ENV=production refuses VESTIBULE_BCRYPT_COST below {MODEST_COST}")


def load(environment: Mapping[str, str]) -> Settings:
    """Return the settings that the environment describes; raises SettingsError with one line.

    An empty value is an unset one, as compose files write it.
    """
    values: dict[str, str] = {}
    for variable, text in sorted(environment.items()):
        if variable.startswith(PREFIX) and text:
            _take(values, variable, text)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None


def _take(values: dict[str, str], variable: str, text: str) -> None:
    name = variable.removeprefix(PREFIX)
    from_file = name.endswith("_FILE")
    field = name.removesuffix("_FILE").lower()
    if name != name.upper() or field not in Settings.model_fields:
        if name == FOR_THE_SCRIPTS or KUBERNETES_NAME.fullmatch(f"{name}={text}"):
            return
        raise SettingsError(f"{variable} is not a setting of Vestibule{_nearest(field)}")
    if field in values:
        raise SettingsError(f"{PREFIX}{field.upper()} and {PREFIX}{field.upper()}_FILE are both set: keep one")
    values[field] = _content(variable, text) if from_file else text


def _nearest(field: str) -> str:
    near = get_close_matches(field, Settings.model_fields, n=1)
    return f": do you mean {PREFIX}{near[0].upper()}?" if near else ""


def _content(variable: str, path: str) -> str:
    """Return the file's text without the blanks around it; no error names the path, which may be a secret astray."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{variable}: cannot read the file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{variable}: the file is not UTF-8 text") from None
    if not text:
        raise SettingsError(f"{variable}: the file is empty")
    return text


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
    if not first["loc"]:
        return message
    return f"{PREFIX}{str(first['loc'][0]).upper()}: {message}"


def shown(name: str, value: object) -> str:
    """Return a setting as it would be written in the environment; secrets as ***, nothing for what is unset."""
    if name.endswith(("_limit", "_limits")) and not value:
        return "off"
    match value:
        case None:
            text = ""
        case SecretStr():
            text = "***"
        case dict():
            text = ",".join(f"{kid}:***" for kid in value)
        case bool():
            text = "1" if value else "0"
        case Trusted():
            text = ",".join([*map(str, value.networks), *(["unix"] if value.unix else [])])
        case tuple():
            text = ",".join(shown("", one) for one in value)
        case Rule():
            text = f"{value.limit}/{next(word for word, seconds in PERIODS.items() if seconds == value.seconds)}"
        case _:
            text = str(value)
    return text
