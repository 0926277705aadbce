"""What people open in a browser: the sign-up page, the description's reader, and explanations of problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import to_json

from service.http.describing import Operation, describes
from service.http.errors import UnknownPath
from service.http.problems import by_slug
from service.http.rendering import page, wants_html
from service.http.schemas import View, response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quart import Response

    from service.settings import Settings

SCHEMA_MEDIA = "application/json"


class LinksView(View):
    """Where to go on."""

    registration: str = "/api/v1/users/register"
    health: str = "/api/v1/health"
    description: str = "/openapi.json"
    documentation: str = "/docs"


class CardView(View):
    """What this is, for programs."""

    name: str = "vestibule"
    version: str
    description: str = "Create an account with e-mail and password, receive a code by e-mail, activate with it."
    code_digits: int
    links: LinksView = LinksView()


class ProblemAnswerView(View):
    """One answer of a problem's type."""

    status: int
    detail: str
    advice: str


class ProblemView(View):
    """A type of problem, explained."""

    type: str
    title: str
    error: str
    answers: list[ProblemAnswerView]


class Pages:
    """The handlers; `document` gives the description once the routes are known."""

    def __init__(self, settings: Settings, version: str, document: Callable[[], Mapping[str, object]]) -> None:
        self._settings = settings
        self._version = version
        self._document = document
        self._problems = by_slug()

    @describes(Operation("Show the sign-up page, or say what this is.", {200: CardView}))
    async def home(self) -> Response:
        """Answer browsers with the sign-up page and programs with a card."""
        if wants_html():
            return page("signup.html", digits=self._settings.code_digits, version=self._version)
        card = CardView(version=self._version, code_digits=self._settings.code_digits)
        return card.response(headers={"Vary": "Accept"})

    @describes(Operation("Explain a type of problem.", {200: ProblemView}, problems=(UnknownPath,)))
    async def problem(self, slug: str) -> Response:
        """Answer with the table's entries of the slug; raises UnknownPath."""
        if slug not in self._problems:
            raise UnknownPath
        problems = self._problems[slug]
        if wants_html():
            return page("problem.html", problems=problems)
        answers = [ProblemAnswerView(status=it.status, detail=it.detail, advice=it.advice) for it in problems]
        first = problems[0]
        view = ProblemView(type=f"/problems/{slug}", title=first.title, error=first.code, answers=answers)
        return view.response(headers={"Vary": "Accept"})

    @describes(Operation("Describe every call (OpenAPI 3.1).", {200: SCHEMA_MEDIA}))
    async def openapi(self) -> Response:
        """Answer with the description."""
        return response(to_json(self._document()).decode(), SCHEMA_MEDIA)

    @describes(Operation("Show the description to people.", {200: "text/html"}))
    async def docs(self) -> Response:
        """Answer with the description as a page."""
        return page("docs.html", document=self._document())
