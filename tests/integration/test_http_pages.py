from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from actors.domain.errors import CodeExpired
from service.embedded.mail_catcher import keep_mail
from service.http.problems import TABLE
from service.settings import Settings
from tests.fakes.http_client import USERS, basic, register
from tests.fakes.http_service import FakeService

if TYPE_CHECKING:
    from pathlib import Path

    from quart.typing import TestClientProtocol

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HERE = {"scope_base": {"client": ("127.0.0.1", 5)}}
MAIL = (
    b"Subject: Your code <b>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=x\r\n\r\n"
    b"--x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n012345\r\n<script>alert(1)</script>\r\n"
    b'--x\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p onclick="x">012345</p>\r\n--x--\r\n'
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return the settings of a development machine."""
    return Settings(loop="trio", data_dir=tmp_path)


@pytest.fixture
def client(settings: Settings) -> TestClientProtocol:
    """Return a client of the application on Trio."""
    return FakeService().app(settings).test_client()


async def test_browsers_get_the_sign_up_page_and_programs_a_card(client: TestClientProtocol) -> None:
    """`/` answers by Accept, and Vary says so."""
    page = await client.get("/", headers=HTML)
    assert page.headers["Content-Type"].startswith("text/html")
    assert 'autocomplete="one-time-code"' in await page.get_data(as_text=True)
    for accept in ("*/*", "application/json", ""):
        card = await client.get("/", headers={"Accept": accept})
        assert (await card.get_json())["links"]["registration"] == "/api/v1/users/register"
        assert card.headers["Vary"] == page.headers["Vary"] == "Accept"


@pytest.mark.parametrize("path", ["/", "/docs", "/problems/busy", "/dev/mail"])
async def test_pages_load_nothing_from_another_host(client: TestClientProtocol, path: str) -> None:
    """Every address in a page is one of ours, every file it names is there, and the policy holds the rest out."""
    page = await client.get(path, headers={**HTML, "Host": "localhost"}, **HERE)
    assert page.status_code == 200
    text = await page.get_data(as_text=True)
    assert "//" not in text.replace("<!doctype", "")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert "style=" not in text
    assert not re.search(r"<script(?! src)", text)
    for name in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
        assert (await client.get(name)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/problems/busy", "/ops", "/dev/mail"])
async def test_every_link_of_a_page_lies_under_the_path_of_public_url(path: str, tmp_path: Path) -> None:
    """With https://example.org/auth pages name `/auth/…` alone, and each address answers, with and without a proxy."""
    settings = Settings(loop="trio", data_dir=tmp_path, public_url="https://example.org/auth")
    client = FakeService().app(settings).test_client()
    for asked in (path, f"/auth{path}"):
        page = await client.get(asked, headers={**HTML, "Host": "localhost"}, **HERE)
        assert page.status_code == 200
        links = re.findall(r'(?:src|href|action)="([^"#:]+)"', await page.get_data(as_text=True))
        assert links
        for link in links:
            assert link.startswith("/auth/")
            assert (await client.get(link, headers={"Host": "localhost"}, **HERE)).status_code == 200
    assert (await client.get("/auth", headers=HTML)).status_code == 200
    assert (await client.get("/authority", headers=HTML)).status_code == 404


async def test_every_address_in_json_lies_under_the_path_of_public_url() -> None:
    """Status address, Location, links, the address for a resend, redirects and the session's cookie."""
    service = FakeService()
    client = service.app(public_url="https://example.org/auth", ops_token="t" * 16).test_client()
    registered = await register(client)
    body = await registered.get_json()
    assert body["status_url"] == registered.headers["Location"]
    assert body["status_url"].startswith("/auth/api/v1/users/activation/")
    links = (await (await client.get("/")).get_json())["links"]
    assert all(link.startswith("/auth/") for link in links.values())
    assert (await (await client.get("/openapi.json")).get_json())["servers"] == [{"url": "/auth"}]
    service.signup.failure = CodeExpired()
    expired = await client.post(f"{USERS}/activate", json={"code": "012345"}, headers=basic())
    assert (await expired.get_json(force=True))["resend_url"] == "/auth/api/v1/users/resend"
    signed_in = await client.post("/auth/ops/session", form={"token": "t" * 16})
    assert signed_in.headers["Location"] == "/auth/ops"
    assert "; Path=/auth/ops;" in signed_in.headers["Set-Cookie"]


async def test_every_input_has_a_label(client: TestClientProtocol) -> None:
    """Screen readers can tell what each field is."""
    text = await (await client.get("/", headers=HTML)).get_data(as_text=True)
    inputs = set(re.findall(r'<input id="(\w+)"', text))
    assert inputs == set(re.findall(r'<label for="(\w+)"', text)) == {"email", "password", "code"}


async def test_static_files_are_only_ours(client: TestClientProtocol) -> None:
    """A name that is none of our files is not found, whatever it means to a file system."""
    answer = await client.get("/static/style.css")
    assert answer.headers["Content-Type"] == "text/css; charset=utf-8"
    assert answer.headers["Cache-Control"].startswith("public")
    for name in ("app.py", "..%2fapp.py", "../app.py", "%00", "style.css/"):
        assert (await client.get(f"/static/{name}")).status_code == 404


@pytest.mark.parametrize("slug", sorted({problem.slug for problem in TABLE.values()}))
async def test_every_problem_is_explained(client: TestClientProtocol, slug: str) -> None:
    """The address in a problem's type leads to its explanation, for people and for programs."""
    explained = await (await client.get(f"/problems/{slug}")).get_json()
    assert explained["type"] == f"/problems/{slug}"
    assert explained["answers"]
    page = await client.get(f"/problems/{slug}", headers=HTML)
    assert explained["error"] in await page.get_data(as_text=True)


async def test_an_unknown_problem_is_not_found(client: TestClientProtocol) -> None:
    """There is no page for a slug that is none."""
    assert (await client.get("/problems/nothing")).status_code == 404


async def test_the_reader_names_every_call(client: TestClientProtocol) -> None:
    """/docs shows what /openapi.json describes."""
    document = await (await client.get("/openapi.json")).get_json()
    text = await (await client.get("/docs", headers=HTML)).get_data(as_text=True)
    for path, calls in document["paths"].items():
        for method in calls:
            assert f"{method.upper()} {path}</code>" in text


async def test_caught_mails_are_listed(client: TestClientProtocol, settings: Settings) -> None:
    """Scripts read the newest mails as JSON."""
    keep_mail(settings.data_dir / "mails", ["ada@example.com"], MAIL)
    answer = await client.get("/dev/mail", headers={"Host": "localhost"}, **HERE)
    (mail,) = (await answer.get_json())["mails"]
    assert mail["to"] == "ada@example.com"
    assert "012345" in mail["text"].split()
    assert set(mail) == {"id", "to", "subject", "date", "text"}
    one = await client.get(f"/dev/mail/{mail['id']}", headers={"Host": "localhost"}, **HERE)
    assert await one.get_json() == mail
    assert one.headers["Cache-Control"] == "no-store"


async def test_a_caught_mail_is_shown_in_a_sandbox(client: TestClientProtocol, settings: Settings) -> None:
    """Nothing of a mail is markup of the page; its HTML stays in a frame without scripts."""
    name = keep_mail(settings.data_dir / "mails", ["ada@example.com"], MAIL)
    page = await client.get(f"/dev/mail/{name}", headers={**HTML, "Host": "localhost"}, **HERE)
    text = await page.get_data(as_text=True)
    assert "<script" not in text
    assert "<b>" not in text
    assert "<p onclick" not in text
    assert '<iframe sandbox title="The mail as HTML" srcdoc="&lt;p onclick' in text
    assert "script-src" not in page.headers["Content-Security-Policy"]
    assert (await client.get("/dev/mail/none", headers={"Host": "localhost"}, **HERE)).status_code == 404


async def test_caught_mails_are_for_this_machine(client: TestClientProtocol) -> None:
    """A other, and a page that reaches us by another name, see nothing."""
    other = await client.get("/dev/mail", headers={"Host": "localhost"}, scope_base={"client": ("192.0.2.1", 5)})
    assert (other.status_code, (await other.get_json(force=True))["error"]) == (403, "OpsTokenRequired")
    rebound = await client.get("/dev/mail", headers={"Host": "evil.example.com"}, **HERE)
    assert rebound.status_code == 403


async def test_the_token_of_operators_opens(settings: Settings) -> None:
    """With a token set it is needed everywhere, on this machine too."""
    guarded = Settings.model_validate({**settings.model_dump(), "ops_token": "token", "code_keys": None})
    client = FakeService().app(guarded).test_client()
    for path in ("/dev/mail", "/api/v1/metrics", "/metrics"):
        answer = await client.get(path, headers={"Host": "localhost"}, **HERE)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    answer = await client.get("/dev/mail", headers={"Authorization": "Bearer token", "Host": "any.example.com"})
    assert answer.status_code == 200


async def test_there_is_no_catcher_where_mails_leave(tmp_path: Path) -> None:
    """With a mail server set the routes do not exist."""
    settings = Settings.model_validate({"loop": "trio", "data_dir": tmp_path, "mail_url": "smtp://localhost:25"})
    client = FakeService().app(settings).test_client()
    assert (await client.get("/dev/mail", headers={"Host": "localhost"}, **HERE)).status_code == 404
