"""The account page: password, sessions, and a forgotten password."""

from tests.browser.conftest import Visit, Visitor
from tests.support.people import PASSWORD
from tests.support.servers import Server

NEW = "an entirely new password"


def fill_in(window: Visitor, **fields: str) -> None:
    for name, value in fields.items():
        window.page.fill(f"#{name}", value)
    window.page.click("main .btn-primary")


def test_a_password_is_changed_and_a_wrong_one_is_explained(visit: Visit, server: Server) -> None:
    person = server.people.customer()
    window = visit(person)
    page = window.open("/account")
    fill_in(window, current_password="not this one", new_password=NEW)
    window.see("#current_password-error")
    assert page.evaluate("document.activeElement.id") == "current_password"
    fill_in(window, current_password=PASSWORD, new_password=NEW)
    window.see(".notice-done")
    assert "Your password is changed" in window.text(".notice")


def test_a_typed_password_can_be_shown(visit: Visit) -> None:
    window = visit()
    page = window.open("/login")
    page.fill("#password", "something long")
    page.click("text=Show")
    assert page.get_attribute("#password", "type") == "text"
    page.click("text=Hide")
    assert page.get_attribute("#password", "type") == "password"


def test_a_session_on_another_device_can_be_ended(visit: Visit, server: Server) -> None:
    person = server.people.customer()
    elsewhere = visit(person.signed_in_again())
    elsewhere.open("/orders", live=True)
    window = visit(person)
    window.open("/account")
    window.page.click('button:has-text("End the session of")')
    assert "That session has ended" in window.text(".notice")
    elsewhere.see("text=You are signed out")


def test_a_forgotten_password_is_set_with_an_admins_link(visit: Visit, server: Server) -> None:
    person = server.people.customer("Forgetful Fay")
    office = visit(server.people.admin())
    office.open("/users?q=forgetful+fay")
    assert office.page.locator(".person").count() == 1
    office.page.click('button:has-text("Link to reset the password")')
    link = office.page.input_value("#link")

    window = visit()
    window.page.goto(link)
    fill_in(window, password="short")
    window.see("#password-error")
    fill_in(window, password=NEW)
    assert "Your new password is set" in window.text(".notice")
    fill_in(window, email=person.email, password=NEW)
    window.page.wait_for_url("**/orders")

    window.page.goto(link)
    fill_in(window, password="and yet another one")
    assert "This link does not work any more" in window.text("main")
