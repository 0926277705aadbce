"""PostgreSQL as it is: versions, defaults of roles and databases, encodings, rights, ways to reach it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.compat.walk import command

if TYPE_CHECKING:
    from typing import LiteralString

    from tests.compat.databases import Servers
    from tests.compat.setups import Setup

pytestmark = pytest.mark.slow

VERSIONS = ["15", "16", "17", "18"]
MODES = ["serve", "worker", "up"]
DEFAULTS = {
    "DateStyle": ["German, DMY", "SQL, DMY", "Postgres, MDY", "ISO, YMD"],
    "client_encoding": ["SQL_ASCII", "LATIN1", "WIN1251"],
    "TimeZone": ["America/New_York"],
    "IntervalStyle": ["sql_standard", "postgres_verbose"],
    "bytea_output": ["escape"],
    "extra_float_digits": ["-15"],
    "standard_conforming_strings": ["off"],
    "search_path": ["nowhere", '"$user", public, pg_catalog'],
    "default_transaction_isolation": ["serializable", "repeatable read"],
    "default_transaction_read_only": ["on"],
    "default_transaction_deferrable": ["on"],
    "statement_timeout": ["50ms"],
    "lock_timeout": ["1ms"],
    "idle_in_transaction_session_timeout": ["50ms"],
    "idle_session_timeout": ["300ms"],
    "transaction_timeout": ["50ms"],
    "row_security": ["off"],
    "jit": ["on"],
    "synchronous_commit": ["off", "remote_apply"],
    "default_toast_compression": ["pglz"],
    "default_table_access_method": ["heap"],
    "xmloption": ["document"],
    "array_nulls": ["off"],
    "quote_all_identifiers": ["on"],
    "transform_null_equals": ["on"],
    "lc_messages": ["C"],
    "work_mem": ["64kB"],
    "client_min_messages": ["debug5"],
    "plan_cache_mode": ["force_custom_plan"],
}
UTF8 = "CREATE DATABASE {database} OWNER {role} TEMPLATE template0 ENCODING 'UTF8' "
LOCALES = {
    "locale C": "LOCALE 'C'",
    "locale C.UTF-8": "LOCALE 'C.UTF-8'",
    "locale tr_TR.UTF-8": "LOCALE 'tr_TR.UTF-8'",
    "ICU locale tr-TR": "LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR' LOCALE 'C'",
    "ICU locale that compares without case": "LOCALE_PROVIDER icu ICU_LOCALE 'und-u-ks-level2' LOCALE 'C'",
}


@pytest.mark.parametrize("version", VERSIONS, ids=[f"PostgreSQL {version}" for version in VERSIONS])
def test_versions(version: str, servers: Servers, row: Setup) -> None:
    """Every version from 15 works, for a role that owns its database and nothing else."""
    row.urls["DATABASE_URL"] = servers.database(version).url
    row.works()


def defaults() -> list[object]:
    """Return a row for each default, set on the role and on the database."""
    return [pytest.param(name, value, id=f"{name} = {value}") for name, values in DEFAULTS.items() for value in values]


@pytest.mark.parametrize(("name", "value"), defaults())
def test_defaults(name: str, value: str, servers: Servers, row: Setup) -> None:
    """No default of the role or the database changes anything."""
    database = servers.database()
    database.set({name: value})
    row.urls["DATABASE_URL"] = database.url
    row.works()


@pytest.mark.parametrize("locale", LOCALES)
def test_locales(locale: str, servers: Servers, row: Setup) -> None:
    """No collation changes which addresses are the same, though Turkish knows two letters i."""
    if "tr_TR" in locale and "tr_TR.utf8" not in subprocess.check_output(["locale", "-a"], text=True):
        pytest.skip("this machine has no locale tr_TR.UTF-8: Debian's `locales` is not installed")
    row.urls["DATABASE_URL"] = servers.database("15", UTF8 + LOCALES[locale]).url
    row.works()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"], ids=["encoding SQL_ASCII", "encoding LATIN1"])
def test_encodings(encoding: str, servers: Servers, row: Setup) -> None:
    """A database in another encoding than UTF-8 is refused by every command."""
    create = UTF8.replace("UTF8", encoding) + "LOCALE 'C'"
    row.urls["DATABASE_URL"] = servers.database(create=create).url
    row.refused(f"encoding is {encoding}: .*CREATE DATABASE .* ENCODING 'UTF8' TEMPLATE template0", "migrate", *MODES)


OTHERS = """
CREATE TABLE public.users (id int PRIMARY KEY, email text); CREATE TABLE public.schema_migrations (version text);
INSERT INTO public.users VALUES (1, 'theirs'); INSERT INTO public.schema_migrations VALUES ('theirs');
CREATE TABLE public.accounts (theirs int); CREATE TABLE public.mails (theirs int);
CREATE FUNCTION public.now() RETURNS text LANGUAGE sql AS $$ SELECT 'theirs' $$;
ALTER TABLE public.users OWNER TO {role}; ALTER TABLE public.schema_migrations OWNER TO {role}
"""


def test_another_program_s_tables_of_the_same_names(servers: Servers, row: Setup) -> None:
    """Neither has contact with the other."""
    database = servers.database()
    database.run(OTHERS)
    row.urls["DATABASE_URL"] = database.url
    row.works()
    assert database.run("SELECT email, version FROM public.users, public.schema_migrations") == [("theirs", "theirs")]


def test_a_schema_of_our_name_that_is_another_program_s(servers: Servers, row: Setup) -> None:
    """It is not taken over."""
    database = servers.database()
    database.run("CREATE SCHEMA vestibule; CREATE TABLE vestibule.accounts (theirs int)")
    row.urls["DATABASE_URL"] = database.url
    row.refused("GRANT|schema vestibule", "migrate", *MODES)


RIGHTS: dict[str, LiteralString] = {
    "without CREATE on the database": "ALTER DATABASE {database} OWNER TO vestibule",
    "without TEMP": "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC, {role}",
    "without anything on schema public": "REVOKE ALL ON SCHEMA public FROM PUBLIC",
    "that owns nothing and may use the tables": """
        ALTER DATABASE {database} OWNER TO vestibule; REASSIGN OWNED BY {role} TO vestibule;
        GRANT USAGE ON SCHEMA vestibule TO {role};
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA vestibule TO {role};
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vestibule TO {role}
    """,
}


@pytest.mark.parametrize("rights", RIGHTS, ids=[f"a role {rights}" for rights in RIGHTS])
def test_rights_that_suffice(rights: str, servers: Servers, row: Setup) -> None:
    """Once the schema is there, a role needs no more than the rights on its tables."""
    database = servers.database()
    row.urls["DATABASE_URL"] = database.url
    assert command(row.settings, "migrate").returncode == 0
    database.run(RIGHTS[rights])
    row.works()


def test_a_role_without_create_before_the_schema_is_there(servers: Servers, row: Setup) -> None:
    """The line says what to grant."""
    database = servers.database()
    database.run("ALTER DATABASE {database} OWNER TO vestibule")
    row.urls["DATABASE_URL"] = database.url
    row.refused("GRANT CREATE ON DATABASE", "migrate", "up")


MISSING = [
    ("INSERT", "accounts"),
    ("UPDATE", "accounts"),
    ("SELECT", "accounts"),
    ("INSERT", "mails"),
    ("UPDATE", "mails"),
    ("INSERT", "answers"),
    ("INSERT", "business_counts"),
    ("UPDATE", "business_counts"),
    ("INSERT", "rate_limits"),
    ("DELETE", "rate_limits"),
    ("SELECT", "migrations"),
]


@pytest.mark.parametrize(("right", "table"), MISSING, ids=[f"{right} on {table} missing" for right, table in MISSING])
def test_rights_that_are_missing(right: str, table: str, servers: Servers, row: Setup) -> None:
    """Each right is looked for at the start, and named."""
    database = servers.database()
    row.urls["DATABASE_URL"] = database.url
    assert command(row.settings, "migrate").returncode == 0
    database.run(RIGHTS["that owns nothing and may use the tables"])
    database.run("REVOKE ", right, " ON vestibule.", table, " FROM {role}")
    row.refused(f"lacks {right} on vestibule.{table}:|permission denied for table {table}", "serve")
