from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.place import COOLDOWN_SECONDS
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.place import Place

PASSWORD = "correct horse battery staple"


def fill(tab: Page, place: Place, address: str, password: str = PASSWORD) -> None:
    """Send the form."""
    tab.goto(place.url)
    tab.get_by_label("E-mail address").fill(address)
    tab.get_by_label("Password").fill(password)
    tab.get_by_role("button", name="Create account").click()


def code_of_the_caught_mail(tab: Page, place: Place, address: str) -> str:
    """Read the code where a developer reads it: on the page of the mail catcher, in a tab of its own."""
    place.mail(address)
    mails = tab.context.new_page()
    mails.goto(f"{place.url}/dev/mail")
    mails.get_by_role("row").filter(has_text=address).first.get_by_role("link").click()
    code = re.search(r"^\d{6}$", mails.locator("pre").inner_text(), re.MULTILINE)
    framed = mails.frame_locator("iframe").locator("body")
    assert code is not None
    expect(framed).to_contain_text(code[0])
    mails.close()
    return code[0]


def test_a_new_person_gets_an_active_account(tab: Page, developers: Place) -> None:
    """The form, the code of the mail, and the account is active; the password is forgotten."""
    address = developers.address()
    fill(tab, developers, address)
    expect(tab.get_by_label("Code from the mail")).to_be_focused()
    expect(tab.get_by_role("status")).to_contain_text("valid for")
    code = code_of_the_caught_mail(tab, developers, address)
    tab.get_by_label("Code from the mail").fill(f" {code[:3]}-{code[3:]} ")  # as people type it
    tab.get_by_role("button", name="Activate").click()
    expect(tab.get_by_text("Your account is active")).to_be_visible()
    assert tab.locator("#password").input_value() == ""


def test_a_new_code_can_be_asked_for(tab: Page, developers: Place) -> None:
    """Too soon it says how long to wait; later another mail comes, and its code activates."""
    address = developers.address()
    fill(tab, developers, address)
    first = developers.mail(address).code
    tab.get_by_role("button", name="Send a new code").click()
    expect(tab.get_by_role("alert").filter(has_text="Try again in")).to_be_visible()
    expect(tab.get_by_role("status")).to_contain_text("mailbox")

    def sent_again() -> bool:
        with tab.expect_response("**/resend") as answer:
            tab.get_by_role("button", name="Send a new code").click()
        return answer.value.status == 202

    wait_for(sent_again, "a new code can be had", 2 * COOLDOWN_SECONDS)
    second = developers.mail(address, 2).code
    assert second != first
    tab.get_by_label("Code from the mail").fill(second)
    tab.get_by_role("button", name="Activate").click()
    expect(tab.get_by_text("Your account is active")).to_be_visible()


@pytest.mark.parametrize(
    ("address", "password", "shown"),
    [
        ("ada@", PASSWORD, ("E-mail address", "domain name")),
        ("ada lovelace@example.test", PASSWORD, ("E-mail address", "before the @")),
        ("bob@example.test", "short", ("Password", "too short")),
        ("bob@example.test", "é" * 40, ("Password", "72 bytes")),
        ("bob@example.test", "password1", ("Password", "well known")),
        ("bob@example.test", "bob@example.test", ("Password", "your address")),
    ],
)
def test_a_mistake_is_shown_at_its_field(
    tab: Page, developers: Place, address: str, password: str, shown: tuple[str, str]
) -> None:
    """The field is focused, marked invalid, and described by a sentence that says what to mend."""
    field, sentence = shown
    fill(tab, developers, address, password)
    wrong = tab.get_by_label(field)
    expect(wrong).to_be_focused()
    expect(wrong).to_have_attribute("aria-invalid", "true")
    expect(wrong).to_have_accessible_description(re.compile(sentence))


def test_a_wrong_code_says_how_many_attempts_are_left(tab: Page, developers: Place) -> None:
    """The sentence counts down, and stands at the field."""
    address = developers.address()
    fill(tab, developers, address)
    code = code_of_the_caught_mail(tab, developers, address)
    wrong = str((int(code) + 1) % 10**6).zfill(6)
    tab.get_by_label("Code from the mail").fill(wrong)
    tab.keyboard.press("Enter")
    expect(tab.get_by_label("Code from the mail")).to_have_accessible_description(re.compile("4 attempts left"))


def test_a_taken_address_can_go_on_with_its_code(tab: Page, developers: Place) -> None:
    """Who registers again hears so, and can still type the code of the first mail."""
    address = developers.address()
    fill(tab, developers, address)
    code = code_of_the_caught_mail(tab, developers, address)
    fill(tab, developers, address)
    expect(tab.get_by_role("alert").filter(has_text="exists or waits")).to_be_visible()
    tab.get_by_role("button", name="I have a code already").click()
    tab.get_by_label("Code from the mail").fill(code)
    tab.keyboard.press("Enter")
    expect(tab.get_by_text("Your account is active")).to_be_visible()


def test_the_page_works_from_the_keyboard_alone(tab: Page, developers: Place) -> None:
    """Tab leads through the form in its order, each stop is seen, and Enter sends it."""
    tab.goto(developers.url)
    stops = []
    for _ in range(5):
        tab.keyboard.press("Tab")
        focused = tab.locator(":focus")
        stops.append(focused.get_attribute("id") or focused.inner_text())
        assert focused.evaluate("it => getComputedStyle(it).outlineStyle") != "none"
    assert stops == ["email", "password", "Create account", "have-code", "API"]
    tab.get_by_label("E-mail address").focus()
    tab.keyboard.type(developers.address())
    tab.keyboard.press("Tab")
    tab.keyboard.type(PASSWORD)
    tab.keyboard.press("Enter")
    expect(tab.get_by_label("Code from the mail")).to_be_focused()
