"""Clients as they are: command lines, libraries, generated clients and a browser of another origin sign up.

Each program of `walks/` registers, is given the code of its mail, activates and reads its account, and prints the
three statuses.
"""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import subprocess
import sys
import unicodedata
import venv
from http import HTTPStatus
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.instance import HOST, Instance, running
from tests.e2e.post import CaughtMails, Post
from tests.faults.clients import Clients
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    Form = Literal["NFC", "NFD"]

pytestmark = pytest.mark.slow
WALKS = Path(__file__).with_name("walks")
PAGE_PORT = free_ports(1)
ORIGIN = f"http://{HOST}:{PAGE_PORT}"
LIMITS = ("REGISTER_LIMIT", "ACTIVATE_LIMIT", "PASSWORD_LIMIT", "PASSWORD_CLIENT_LIMIT", "BASIC_LIMIT", "CODE_LIMITS")
SETTINGS = {**dict.fromkeys(LIMITS, "off"), "CORS_ORIGINS": ORIGIN, "WORKERS": "1"}
PYTHON = sys.executable
INSTALL_SECONDS, WALK_SECONDS = 300, 60
SIGNED_UP = ["201", "200", "200"]
PASSWORDS = {
    "plain": "correct horse battery",
    "colons": "with:colons::inside",
    "umlauts": "pässwörd-é-straße",
    "emoji": "🐎🔋🐎🔋",
    "quotes": 'it\'s a "quoted" \\ one',
}


class Service:
    """A running service that mails into its own catcher."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.url = f"http://{HOST}:{instance.port}"
        self.post = Post(CaughtMails(instance.data_dir / "mails"), instance.ledger)

    def call(
        self, method: str, path: str, body: object = None, *, basic: bytes | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Ask for `path`; return the status and the JSON of the answer."""
        headers = {} if basic is None else {"Authorization": "Basic " + base64.b64encode(basic).decode()}
        answer = Clients(self.instance.port).ask(method, path, body, **headers)
        return answer.status, answer.body

    def register(self, email: str, password: str) -> None:
        """Register, and be sure of it."""
        status, found = self.call("POST", "/api/v1/users/register", {"email": email, "password": password})
        assert status == HTTPStatus.CREATED, found

    def walk(self, command: list[str], folder: Path, *, email: str | None = None, password: str = "") -> list[str]:
        """Run a program that signs somebody up; return what it printed."""
        email = email or address()
        arguments = [*command, self.url, email, password or PASSWORDS["plain"]]
        with subprocess.Popen(
            arguments, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            first = process.stdout.readline().strip()
            local, _, domain = email.partition("@")
            code = self.post.wait(f"{local}@{domain.encode('idna').decode()}").code if first == "201" else ""
            rest, complaint = process.communicate(f"{code}\n", WALK_SECONDS)
        assert process.returncode == 0, complaint
        return [first, *rest.split()]


def address() -> str:
    """Return an address that nobody has had."""
    return f"ada.{token_hex(6)}@example.test"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service whose limits are off."""
    with running(tmp_path_factory.mktemp("clients"), "uvloop", SETTINGS) as instance:
        yield Service(instance)


def program(name: str) -> str:
    """Return where a program is; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("password", PASSWORDS.values(), ids=PASSWORDS)
@pytest.mark.parametrize(
    ("needs", "command"),
    [
        pytest.param("curl", ["sh", str(WALKS / "curl.sh")], id="curl"),
        pytest.param("http", ["sh", str(WALKS / "httpie.sh")], id="httpie"),
        pytest.param("node", ["node", str(WALKS / "fetch.mjs")], id="node-fetch"),
        pytest.param(PYTHON, [PYTHON, str(WALKS / "library.py"), "requests"], id="requests"),
        pytest.param(PYTHON, [PYTHON, str(WALKS / "library.py"), "httpx"], id="httpx"),
    ],
)
def test_a_client_signs_up(service: Service, tmp_path: Path, needs: str, command: list[str], password: str) -> None:
    """A common client registers, activates and reads the account, whatever characters the password has."""
    program(needs)
    if needs == "curl" and '"' in password:
        password = password.replace('"', "").replace("\\", "")  # the script writes its JSON by hand
    assert service.walk(command, tmp_path, password=password) == SIGNED_UP


@pytest.mark.parametrize(
    "email", ["o'neil+tag@example.test", "a.b-c_d=e&f@example.test", "ada@bücher.example", "ADA.Mixed@Example.Test"]
)
def test_an_unusual_address_signs_up(service: Service, tmp_path: Path, email: str) -> None:
    """Plus, quotes, other symbols, capitals and a domain beyond ASCII are usual characters of an address."""
    local, _, domain = email.partition("@")
    email = f"{local}{token_hex(3)}@{domain}"
    assert service.walk([PYTHON, str(WALKS / "library.py"), "httpx"], tmp_path, email=email) == SIGNED_UP


@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("sent", ["NFC", "NFD"])
def test_composed_and_decomposed_passwords_are_one(service: Service, typed: Form, sent: Form) -> None:
    """A password of one keyboard's form is right in the other's."""
    email, password = address(), PASSWORDS["umlauts"]
    service.register(email, unicodedata.normalize(typed, password))
    basic = f"{email}:{unicodedata.normalize(sent, password)}".encode()
    assert service.call("GET", "/api/v1/users/me", basic=basic)[0] == HTTPStatus.OK


def test_credentials_in_latin_1_are_answered_clearly(service: Service) -> None:
    """A client that sends Latin-1 is told to send UTF-8; no server can know what it meant."""
    email, password = address(), PASSWORDS["umlauts"]
    service.register(email, password)
    status, problem = service.call("GET", "/api/v1/users/me", basic=f"{email}:{password}".encode("latin-1"))
    assert status == HTTPStatus.UNAUTHORIZED
    assert "UTF-8" in str(problem["detail"])


def test_a_scanner_that_opens_links_uses_nothing_up(service: Service) -> None:
    """GET, HEAD and OPTIONS of every address that a mail or an answer names leave the code as it is."""
    email = address()
    body = {"email": email, "password": PASSWORDS["plain"]}
    _, registered = service.call("POST", "/api/v1/users/register", body)
    code = service.post.wait(email).code
    paths = ["/", "/docs", "/openapi.json", str(registered["status_url"]), "/api/v1/users/activate"]
    paths += [f"{path}?code={code}&email={email}" for path in paths]
    for method in ("GET", "HEAD", "OPTIONS"):
        for path in paths:
            connection = http.client.HTTPConnection(HOST, service.instance.port, timeout=30)
            connection.request(method, path)
            assert connection.getresponse().status < HTTPStatus.INTERNAL_SERVER_ERROR
            connection.close()
    basic = f"{email}:{PASSWORDS['plain']}".encode()
    _, progress = service.call("GET", "/api/v1/users/activation", basic=basic)
    assert (progress["state"], progress["attempts_left"]) == ("accepted", 5)
    assert service.call("POST", "/api/v1/users/activate", {"code": code}, basic=basic)[0] == HTTPStatus.OK


def test_a_client_that_leaves_early_still_has_its_account(service: Service) -> None:
    """A registration whose client closes the connection at once is finished, and its mail is sent."""
    email = address()
    body = json.dumps({"email": email, "password": PASSWORDS["plain"]}).encode()
    head = "POST /api/v1/users/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((HOST, service.instance.port), 30) as connection:
        connection.sendall(head.encode() + body)
    assert service.post.wait(email).code


def test_the_metrics_pass_promtool(service: Service) -> None:
    """`promtool check metrics` has nothing to say about /metrics."""
    promtool = program("promtool")
    connection = http.client.HTTPConnection(HOST, service.instance.port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read()
    connection.close()
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")


@pytest.fixture(scope="module")
def description(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save /openapi.json."""
    path = tmp_path_factory.mktemp("openapi") / "openapi.json"
    path.write_text(json.dumps(service.call("GET", "/openapi.json")[1]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install an OpenAPI validator and a client generator in a virtual environment."""
    folder = tmp_path_factory.mktemp("tools")
    venv.create(folder, with_pip=True)
    packages = ["openapi-spec-validator==0.9.0", "openapi-python-client==0.29.1"]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode:
        pytest.skip("the OpenAPI tools cannot be fetched here")
    return folder / "bin"


def test_the_description_passes_a_validator(tools: Path, description: Path) -> None:
    """/openapi.json is valid OpenAPI."""
    checked = subprocess.run([tools / "openapi-spec-validator", description], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_generated_python_client_signs_up(service: Service, tools: Path, description: Path, tmp_path: Path) -> None:
    """openapi-python-client makes a client that registers, activates and reads the account."""
    package = tmp_path / "generated_client"
    generate = [str(tools / "openapi-python-client"), "generate", "--meta", "none", "--path", str(description)]
    subprocess.run([*generate, "--output-path", str(package)], capture_output=True, check=True, timeout=WALK_SECONDS)
    shutil.copy(WALKS / "generated.py", tmp_path)
    assert service.walk([str(tools / "python"), "generated.py"], tmp_path) == SIGNED_UP


def test_a_generated_typescript_client_signs_up(service: Service, description: Path, tmp_path: Path) -> None:
    """@hey-api/openapi-ts makes a client that registers, activates and reads the account."""
    npm, npx = program("npm"), program("npx")
    packages = ["@hey-api/openapi-ts@0.95.0", "tsx@4", "typescript@5"]
    install = [npm, "install", "--no-audit", "--no-fund", *packages]
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode:
        pytest.skip("the TypeScript tools cannot be fetched here")
    generate = [npx, "openapi-ts", "-i", str(description), "-o", "out"]
    subprocess.run(generate, cwd=tmp_path, capture_output=True, check=True, timeout=WALK_SECONDS)
    shutil.copy(WALKS / "generated.mts", tmp_path)
    assert service.walk([npx, "tsx", "generated.mts"], tmp_path) == SIGNED_UP
