"""What must not be shown: no value of actors/ that a person typed, or that opens something, has a repr."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import pytest

import actors

SECRET = {"email", "email_key", "typed", "recipient", "password", "password_hash", "idempotency_key", "status_token"}
SECRET |= {"secret", "hashed", "digest", "subject"}
MODULES = [importlib.import_module(module.name) for module in pkgutil.walk_packages(actors.__path__, "actors.")]
CLASSES = sorted(
    {
        value
        for module in MODULES
        for value in vars(module).values()
        if dataclasses.is_dataclass(value) and isinstance(value, type)
    },
    key=lambda one: f"{one.__module__}.{one.__name__}",
)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda one: one.__name__)
def test_secrets_and_addresses_have_no_repr(kind: type) -> None:
    """A message, a form or a row that ends up in a log line shows none of them."""
    secret = [field for field in dataclasses.fields(kind) if field.name in SECRET and "Rule" not in str(field.type)]
    assert [field.name for field in secret if field.repr] == []
