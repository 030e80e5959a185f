"""The HTML pages, for a browser without JavaScript: forms, redirects, cookies, CSRF, errors."""

import csv
import gzip
import html
import io
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest
from flask import Flask, request
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ordertrack import auth, errors
from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.services import order_lists, order_walk
from ordertrack.services.orders import HISTORY_PAGE
from ordertrack.web.pages import board
from ordertrack.web.pages.errors import error_page
from tests.support.databases import settings_for
from tests.support.http import Api
from tests.support.people import PASSWORD, People, Person

HTML = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}

Browser = Callable[..., "Window"]


class Window:
    """A browser's window: it keeps cookies, and sends forms with their hidden fields."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client

    def open(self, path: str) -> TestResponse:
        return self.client.get(path, headers=HTML)

    def send(
        self,
        path: str,
        *,
        csrf: str | None = None,
        headers: dict[str, str] | None = None,
        **fields: str,
    ) -> TestResponse:
        token = self.csrf() if csrf is None else csrf
        data = {"csrf_token": token, **fields} if token else fields
        return self.client.post(path, data=data, headers={**HTML, **(headers or {})})

    def csrf(self) -> str:
        found = re.search(r'name="csrf-token" content="(\w+)"', self.open("/orders").text)
        return found[1] if found else ""

    def drop(self, cookie: str) -> None:
        self.client.delete_cookie(cookie)

    def has(self, cookie: str) -> bool:
        return self.client.get_cookie(cookie) is not None


@pytest.fixture
def browser(app: Flask) -> Browser:
    """Opens a window: ``browser(person)`` signed in by the form, ``browser()`` not."""

    def open_window(person: Person | None = None) -> Window:
        window = Window(app.test_client())
        if person is not None:
            answer = window.send("/login", csrf="", email=person.email, password=person.password)
            assert answer.status_code == 303
        return window

    return open_window


# --- log in and register -----------------------------------------------------------------------


def test_a_visitor_without_a_session_is_redirected_to_log_in_and_back(
    browser: Browser, people: People
) -> None:
    customer = people.customer()
    order = customer.order()
    window = browser()
    page = f"/orders/{order['id']}?from=mail"
    answer = window.open(page)
    assert answer.status_code == 303
    assert answer.location == f"/login?next={quote(page)}"
    assert "from=mail" in window.open(answer.location).text
    answer = window.send(
        "/login",
        csrf="",
        email=customer.email,
        password=PASSWORD,
        next=page,
    )
    assert answer.location == page


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/\t/evil.example",
        "evil.example",
        "/" + "x" * 3000,
    ],
)
def test_login_never_redirects_to_another_site(
    browser: Browser, people: People, elsewhere: str
) -> None:
    customer = people.customer()
    answer = browser().send(
        "/login", csrf="", email=customer.email, password=PASSWORD, next=elsewhere
    )
    assert answer.location == "/orders"


def test_the_first_page_depends_on_the_role(browser: Browser, people: People) -> None:
    for person, home in (
        (people.customer(), "/orders"),
        (people.driver(), "/deliveries"),
        (people.admin(), "/board"),
    ):
        assert browser(person).open("/").location == home


def test_a_wrong_password_is_explained_and_the_address_kept(
    browser: Browser, people: People
) -> None:
    customer = people.customer()
    answer = browser().send("/login", csrf="", email=customer.email, password="not this one")
    assert answer.status_code == 401
    assert "is wrong" in answer.text
    assert customer.email in answer.text
    assert "not this one" not in answer.text


@pytest.mark.safety("forged-forms")
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
    ],
)
def test_login_and_registration_refuse_other_sites_csrf(
    browser: Browser, people: People, headers: dict[str, str]
) -> None:
    customer = people.customer()
    window = browser()
    fields = {"email": customer.email, "password": PASSWORD}
    assert window.send("/login", csrf="", headers=headers, **fields).status_code == 403
    answer = window.send("/register", csrf="", headers=headers, name="x", **fields)
    assert answer.status_code == 403
    assert not window.has("access_token_cookie")


# --- sessions ----------------------------------------------------------------------------------


@pytest.mark.safety("forged-forms")
@pytest.mark.parametrize("csrf", ["", "0" * 32, "another session's"])
def test_a_form_without_the_csrf_token_of_its_session_is_refused(
    browser: Browser, people: People, csrf: str
) -> None:
    customer = people.customer()
    window = browser(customer)
    token = browser(customer).csrf() if csrf == "another session's" else csrf
    answer = window.client.post(
        "/orders", data={"description": "forged", "csrf_token": token}, headers=HTML
    )
    assert answer.status_code == 403
    assert "out of date" in answer.text
    assert "forged" not in window.open("/orders").text


@pytest.mark.safety("forged-forms")
def test_a_form_from_another_site_is_refused_even_with_the_csrf_token(
    browser: Browser, people: People
) -> None:
    window = browser(people.customer())
    answer = window.send("/orders", description="forged", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert "forged" not in window.open("/orders").text


def test_the_refresh_cookie_renews_an_expired_access_cookie(
    browser: Browser, people: People
) -> None:
    window = browser(people.customer())
    token = window.csrf()
    window.drop("access_token_cookie")
    assert window.open("/orders").status_code == 200
    assert window.has("access_token_cookie")
    window.drop("access_token_cookie")
    answer = window.send("/orders", csrf=token, description="written slowly")
    assert answer.status_code == 303
    window.drop("access_token_cookie")
    answer = window.client.post("/session/renew", headers={"X-CSRF-TOKEN": token})
    assert answer.status_code == 200
    assert window.has("access_token_cookie")


def test_the_refresh_cookie_is_refused_as_an_access_token(browser: Browser, people: People) -> None:
    window = browser()
    window.client.set_cookie("access_token_cookie", people.customer().refresh_token)
    assert window.open("/orders").status_code == 303


def test_logout_revokes_the_session_and_clears_the_cookies(
    browser: Browser, people: People
) -> None:
    window = browser(people.customer())
    access = window.client.get_cookie("access_token_cookie")
    refresh = window.client.get_cookie("refresh_token_cookie")
    assert window.send("/logout").location == "/login"
    assert not window.has("access_token_cookie")
    assert not window.has("refresh_token_cookie")
    assert access is not None
    assert refresh is not None
    window.client.set_cookie("access_token_cookie", access.value)
    window.client.set_cookie("refresh_token_cookie", refresh.value)
    answer = window.open("/orders")
    assert answer.location == "/login?next=/orders"
    assert "has ended" in window.open(answer.location).text


# --- forms -------------------------------------------------------------------------------------


def test_a_form_sent_twice_places_one_order_idempotency(browser: Browser, people: People) -> None:
    window = browser(people.customer())
    found = re.search(r'name="key" value="(\w+)"', window.open("/orders").text)
    assert found is not None
    answers = [
        window.send("/orders", description="once only", key=found[1]).location for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert window.open("/orders").text.count("once only") == 1


def test_a_refused_form_is_shown_again_with_the_typed_text(
    browser: Browser, people: People
) -> None:
    window = browser(people.customer())
    answer = window.send("/orders", description="   ")
    assert answer.status_code == 422
    assert "Write what you need." in answer.text
    answer = window.send("/orders", description="y" * 2001)
    assert answer.status_code == 422
    assert "y" * 2001 in answer.text
    assert window.send("/orders", description="x", status="Shipped").status_code == 422
    assert window.send("/orders", description="x" * 70_000).status_code == 413


def test_a_notice_is_shown_once_and_cannot_be_forged(browser: Browser, people: People) -> None:
    window = browser(people.customer())
    page = window.send("/orders", description="a lamp").location
    assert page is not None
    assert '<p class="notice notice-done" role="status">Your order is placed' in (
        window.open(page).text
    )
    assert "Your order is placed" not in window.open(page).text
    for value, shown in (
        (
            "moved~<script>alert(1)</script>~x",
            "Order #&lt;script&gt;alert(1)&lt;/script&gt; is x now.",
        ),
        ("moved~{0.__class__}~x", "Order #{0.__class__} is x now."),
        ("moved~1", None),
        ("<b>", None),
        ("nothing~of~ours", None),
    ):
        window.client.set_cookie("notice", value)
        text = window.open("/orders").text
        notices = re.findall(r'<p class="notice[^>]*>([^\n]*)</p>', text)
        assert notices == ([] if shown is None else [shown])


def test_a_stale_form_overwrites_nothing_and_shows_the_present_state(
    browser: Browser, people: People
) -> None:
    customer, driver, admin = people.customer(), people.driver(), people.admin()
    order = customer.order("tea")
    path = f"/orders/{order['id']}"
    admin.edit(order, "tea and lemon")
    window = browser(customer)
    answer = window.send(f"{path}/edit", description="coffee", version="1")
    assert answer.status_code == 412
    assert "tea and lemon" in answer.text
    assert "coffee</textarea>" in answer.text
    driver.move(order, "Processing")
    answer = window.send(f"{path}/edit", description="cocoa", version="2")
    assert answer.status_code == 412
    assert ">cocoa</q>" in answer.text, "it cannot be saved any more, but is not lost"
    assert "cocoa</textarea>" not in answer.text
    assert customer.read(order)["version"] == 3, "nothing was changed"
    answer = window.send(f"{path}/status", status="Cancelled", version="2")
    assert answer.status_code == 412
    answer = browser(driver).send(
        f"{path}/status", status="Shipped", version="1", back="/deliveries"
    )
    assert answer.location == "/deliveries"
    assert customer.read(order)["status"] == "Processing"
    assert customer.read(order)["description"] == "tea and lemon"


def test_pages_of_the_own_list_contain_every_order_once(browser: Browser, people: People) -> None:
    customer = people.customer()
    wanted = [customer.order(f"order {number}")["id"] for number in range(33)][::-1]
    window = browser(customer)
    found: list[str] = []
    path: str | None = "/orders"
    while path:
        text = window.open(path).text
        found += re.findall(r'data-order="(\d+)"', text)
        more = re.search(r'href="(/orders\?before=[^"]+)"', text)
        path = more[1].replace("&amp;", "&") if more else None
    assert found == wanted


def test_driver_scope_limits_the_deliveries_page(database: str, people: People) -> None:
    app = create_app(settings_for(database, DRIVER_SCOPE="assigned"))
    customer, driver, admin = people.customer(), people.driver(), people.admin()
    theirs, others = customer.order("for this driver"), customer.order("for somebody else")
    admin.assign(theirs, driver)
    for person, path, expected in (
        (driver, "/deliveries", {theirs["id"]}),
        (driver, "/deliveries?show=mine", {theirs["id"]}),
        (admin, "/deliveries?show=mine", set()),
    ):
        window = Window(app.test_client())
        window.client.set_cookie("access_token_cookie", person.token)
        found = re.findall(r'data-order="(\d+)"', window.open(path).text)
        assert set(found) == expected
        assert window.open(f"/orders/{others['id']}").status_code == (
            200 if person is admin else 404
        )
    with app.app_context():
        db.engine.dispose()


# --- the board ---------------------------------------------------------------------------------


def rows(window: Window, query: str) -> set[str]:
    answer = window.open(f"/board?{query}")
    assert answer.status_code == 200
    return set(re.findall(r'data-order="(\d+)"', answer.text))


def test_the_boards_filters_are_combined(browser: Browser, people: People) -> None:
    customer, other = people.customer("Zoë 100% Ünique"), people.customer()
    driver, admin = people.driver(), people.admin()
    lamp, chair = customer.order("a 50% lamp"), customer.order("a chair")
    elsewhere = other.order("a 50% lamp")
    admin.assign(chair, driver)
    driver.move(chair, "Processing")
    window = browser(admin)
    own = f"customer={customer.id}"
    lamp_id, chair_id = str(lamp["id"]), str(chair["id"])
    assert rows(window, own) == {lamp_id, chair_id}
    assert rows(window, f"customer={quote('zoë 100%')}") == {lamp_id, chair_id}
    assert rows(window, f"{own}&q={quote('50%')}") == {lamp_id}
    assert rows(window, f"{own}&q={lamp_id}") == {lamp_id}
    assert rows(window, f"{own}&q={quote('#' + lamp_id)}") == {lamp_id}
    assert rows(window, f"{own}&q={quote('zoë')}") == {lamp_id, chair_id}
    assert rows(window, f"{own}&status=Processing") == {chair_id}
    assert rows(window, f"{own}&driver={driver.id}") == {chair_id}
    assert rows(window, f"{own}&driver=none") == {lamp_id}
    assert rows(window, f"{own}&from=2001-01-01&to=2001-01-02") == set()
    assert rows(window, f"{own}&from=2001-01-01") == {lamp_id, chair_id}
    assert rows(window, f"{own}&from=2001-01-01&to=2001-01-01") == set()
    admin.delete(lamp)
    assert rows(window, own) == {chair_id}
    assert rows(window, f"{own}&deleted=yes") == {lamp_id}
    assert str(elsewhere["id"]) not in rows(window, own)
    assert window.open("/board?status=Nothing").status_code == 422
    assert window.open("/board?from=yesterday").status_code == 422
    assert window.open("/board?statsu=Pending").status_code == 422
    assert browser(driver).open("/board?deleted=yes").status_code == 403


def test_a_bounded_search_of_the_board_can_be_continued(
    browser: Browser, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_walk, "SCANNED", 6)  # two of one customer's
    customer, admin = people.customer(), people.admin()
    old = customer.order("a quetzalcoatl")
    for _ in range(5):
        customer.order()
    window = browser(admin)
    path = f"/board?customer={customer.id}&q=quetzalcoatl"
    found: set[str] = set()
    while path:
        page = window.open(path).text
        found |= set(re.findall(r'data-order="(\d+)"', page))
        link = re.search(r'href="([^"]+)">Search older orders</a>', page)
        assert bool(link) == ("Searched back to order #" in page)
        path = html.unescape(link[1]) if link else ""
    assert found == {str(old["id"])}


def test_the_board_shows_bounded_counts_as_at_least(
    browser: Browser, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_lists, "COUNTED", 1)
    customer, admin = people.customer(), people.admin()
    customer.order()
    customer.order()
    page = browser(admin).open("/board").text
    assert re.search(r'data-status="Pending"[^>]*><span class="count-number">1\+</span>', page)


def test_the_boards_pages_and_the_export_contain_every_order_once(
    browser: Browser, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "PAGE", 3)
    monkeypatch.setattr(order_lists, "EXPORT_BATCH", 3)
    customer, admin = people.customer(), people.admin()
    made = [str(customer.order()["id"]) for _ in range(7)][::-1]
    window = browser(admin)
    path, found = f"/board?customer={customer.id}", []
    while path:
        page = window.open(path).text
        found.append(re.findall(r'data-order="(\d+)"', page))
        link = re.search(r'href="([^"]+)">Older orders</a>', page)
        path = html.unescape(link[1]) if link else ""
    assert found == [made[:3], made[3:6], made[6:]]
    exported = window.open(f"/board.csv?customer={customer.id}").text
    assert [row["id"] for row in csv.DictReader(io.StringIO(exported))] == made


def focused(answer: TestResponse) -> str | None:
    """The id of the field that has the focus when the page is shown."""
    found = re.findall(r"<(?:input|textarea)[^>]*\sautofocus[^>]*>", answer.text)
    assert len(found) <= 1
    return re.search(r'\sid="([^"]+)"', found[0])[1] if found else None  # type: ignore[index]


def test_a_last_day_before_the_first_is_an_error(browser: Browser, people: People) -> None:
    people.customer().order("never shown")
    window = browser(people.admin())
    answer = window.open("/board?from=2025-08-02&to=2025-08-01&q=kept")
    assert answer.status_code == 422
    assert "Must not be before the first day." in answer.text
    assert focused(answer) == "to"
    assert 'value="2025-08-02"' in answer.text
    assert 'value="kept"' in answer.text
    assert "never shown" not in answer.text
    assert "No order matches" not in answer.text
    assert window.open("/board.csv?from=2025-08-02&to=2025-08-01").status_code == 422
    assert focused(window.open("/board?from=yesterday")) == "from"
    assert focused(window.open("/board")) is None


def test_a_refused_form_focuses_the_field_in_error(browser: Browser, people: People) -> None:
    customer = people.customer()
    stranger, window = browser(), browser(customer)
    order = customer.order("tea")
    edit = f"/orders/{order['id']}/edit"
    login = {"email": customer.email, "password": "not this one"}
    account = {"name": "Ann", "email": "ann@example.org", "password": "long enough"}
    for answer, field in (
        (stranger.open("/login"), None),
        (stranger.send("/login", csrf="", **login), "password"),
        (stranger.send("/login", csrf="", email="", password="x"), "email"),
        (stranger.send("/register", csrf="", **{**account, "name": " "}), "name"),
        (stranger.send("/register", csrf="", **{**account, "email": "no"}), "email"),
        (stranger.send("/register", csrf="", **{**account, "password": "x"}), "password"),
        (stranger.send("/register", csrf="", **{**account, "email": customer.email}), "email"),
        (window.send("/orders", description=" "), "description"),
        (window.send(edit, description=" ", version="1"), "description"),
        (window.send(edit, description="y" * 2001, version="1"), "description"),
        (window.send(edit, description="coffee", version="9"), "description"),
        (window.open(f"/orders/{order['id']}"), None),
    ):
        assert focused(answer) == field, answer.text
    answer = stranger.send("/register", csrf="", **{**account, "name": " "})
    assert "Please correct the marked field." in answer.text


def test_text_of_a_form_is_shown_when_the_session_has_ended(
    browser: Browser, people: People
) -> None:
    """Another tab signed out; this one sends its form. What it says is shown, not thrown away."""
    customer = people.customer()
    order = customer.order("tea")
    for path, fields in (
        ("/orders", {"description": "forty <chairs>"}),
        (f"/orders/{order['id']}/edit", {"description": "forty <chairs>", "version": "1"}),
        (f"/orders/{order['id']}/status", {"status": "Cancelled", "note": "forty <chairs>"}),
    ):
        window = browser(customer)
        token = window.csrf()
        customer_session = window.client.get_cookie("access_token_cookie")
        assert customer_session is not None
        Api(people.transport, customer_session.value).post("/api/logout")
        answer = window.send(
            path,
            csrf=token,
            headers={"Referer": "http://localhost/orders?status=Pending"},
            **fields,
        )
        assert answer.status_code == 401
        assert "forty &lt;chairs&gt;</textarea>" in answer.text
        assert "Your session has ended" in answer.text
        assert 'name="next" value="/orders"' in answer.text
        assert not window.has("access_token_cookie")
        # From another site's page the text would be that site's.
        answer = window.send(path, csrf=token, headers={"Sec-Fetch-Site": "cross-site"}, **fields)
        assert answer.status_code == 403
        assert "chairs" not in answer.text
    assert browser().send("/board/move", csrf="", status="Processing").location == "/login"


# --- bulk changes ------------------------------------------------------------------------------


def bulk(window: Window, path: str, orders: list[str], **fields: str) -> TestResponse:
    data = {"csrf_token": window.csrf(), "order": orders, **fields}
    return window.client.post(path, data=data, headers=HTML)


def test_a_bulk_change_has_to_be_confirmed(browser: Browser, people: People) -> None:
    ana, ben = people.customer("Ana Lee"), people.customer("Ben <Ng>")
    driver, admin = people.driver("Dewi"), people.admin()
    orders = [ana.order("one"), ana.order("two"), ben.order("three")]
    finished = ben.order("four")
    driver.move(finished, "Processing", "Shipped", "Completed")
    ids = [order["id"] for order in (*orders, finished)]
    window = browser(admin)
    here = "/board?status=Pending"

    answer = bulk(window, "/board/move", ids, status="Cancelled", back=here)
    assert answer.status_code == 200
    assert "Cancel 3 orders?" in answer.text
    assert re.search(r"Ana Lee</bdi> \(2\).*Ben &lt;Ng&gt;</bdi> \(1\)", answer.text, re.DOTALL)
    assert f"#{finished['id']}" in answer.text
    assert "It is Completed." in answer.text
    assert "cannot be taken up again" in answer.text
    assert f'href="{here}&amp;picked={"%2C".join(ids)}"' in answer.text, "back, still selected"
    assert {ana.read(order)["status"] for order in orders[:2]} == {"Pending"}, "nothing yet"
    assert re.findall(r'name="order" value="(\d+)"', answer.text) == ids[:3]

    answer = bulk(window, "/board/move", ids[:3], status="Cancelled", back=here, confirmed="yes")
    assert answer.location == here
    assert "3 orders cancelled." in window.open(here).text
    assert {ben.read(orders[2])["status"], ana.read(orders[0])["status"]} == {"Cancelled"}

    late = ana.order("five")
    answer = bulk(window, "/board/assign", [late["id"]], driver_id=driver.id, back=here)
    assert "Assign 1 order to Dewi?" in re.sub("</?bdi>", "", answer.text)
    assert ana.read(late)["driver"] is None
    answer = bulk(window, "/board/assign", [late["id"]], driver_id="none")
    assert "Take the driver off 1 order?" in answer.text
    assert bulk(window, "/board/move", [], status="Shipped", back=here).location == here
    assert '"notice notice-warning" role="status">No order was selected.' in window.open(here).text
    for path, fields in (("move", {"status": "Processing"}), ("assign", {"driver_id": "none"})):
        refused = bulk(browser(ana), f"/board/{path}", ids, **fields)
        assert refused.status_code == 403


def test_refused_orders_of_a_bulk_change_are_listed_and_stay_selected(
    browser: Browser, people: People
) -> None:
    customer, driver, admin = people.customer(), people.driver(), people.admin()
    moved, behind, gone = (customer.order(text) for text in ("moved", "behind", "gone"))
    driver.move(behind, "Processing", "Shipped")
    customer.delete(gone)
    window = browser(admin)
    here = f"/board?customer={customer.id}"
    ids = [moved["id"], behind["id"], gone["id"]]
    answer = bulk(window, "/board/move", ids, status="Processing", back=here, confirmed="yes")
    assert answer.status_code == 200
    assert "1 order moved to Processing." in answer.text
    assert "2 orders were left as they are" in answer.text
    assert "An order that is Shipped cannot become Processing" in answer.text
    assert "There is no such order" in answer.text
    again = f"{here}&picked={behind['id']}%2C{gone['id']}"
    assert f'href="{again.replace("&", "&amp;")}"' in answer.text
    text = window.open(again).text
    checked = re.findall(r'<input[^>]*name="order" value="(\d+)"[^>]*\schecked', text)
    assert checked == [behind["id"]]
    assert window.open("/board?picked=x").status_code == 422
    assert window.open(f"/board?picked={'1,' * 200}1").status_code == 422


def test_a_bulk_change_changes_only_the_confirmed_orders(browser: Browser, people: People) -> None:
    customer, admin = people.customer(), people.admin()
    asked, already = customer.order("to be cancelled"), customer.order("is cancelled")
    admin.move(already, "Cancelled")
    window = browser(admin)
    ids = [asked["id"], already["id"]]
    page = bulk(window, "/board/move", ids, status="Cancelled").text
    assert "Cancel 1 order?" in page
    assert re.findall(r'name="(order|left)" value="(\d+)"', page) == [
        ("order", asked["id"]),
        ("left", already["id"]),
    ]
    answer = window.send(
        "/board/move", order=asked["id"], left=already["id"], status="Cancelled", confirmed="yes"
    )
    assert "1 order cancelled." in answer.text
    assert "It was Cancelled, and is left so." in answer.text

    # It became possible between the question and the answer: still it was not asked about.
    behind, free = customer.order("not yet"), customer.order("now")
    admin.move(free, "Processing")
    admin.move(behind, "Processing")
    window.send(
        "/board/move", order=free["id"], left=behind["id"], status="Shipped", confirmed="yes"
    )
    assert admin.read(behind)["status"] == "Processing"
    assert admin.read(free)["status"] == "Shipped"


def test_an_order_without_a_driver_shows_the_person_who_moved_it(
    browser: Browser, people: People
) -> None:
    customer, driver, admin = people.customer(), people.driver("Dewi"), people.admin("Amir")
    order, cancelled, given = (customer.order() for _ in range(3))
    window = browser(customer)

    def fact(order: dict[str, str]) -> str:
        text = window.open(f"/orders/{order['id']}").text
        found = re.search(r'id="driver-label">([^<]+)</dt><dd id="driver-name"[^>]*>([^<]+)<', text)
        assert found is not None
        return f"{found[1]}: {found[2]}"

    assert fact(order) == "Driver: Nobody yet"
    driver.move(order, "Processing", "Shipped", "Completed")
    assert fact(order) == "Moved by: Dewi"
    customer.api.put(f"/api/orders/{cancelled['id']}/status", json={"status": "Cancelled"})
    assert fact(cancelled) == "Driver: Nobody"
    assert "</b> cancelled the order." in window.open(f"/orders/{cancelled['id']}").text
    admin.assign(given, driver)
    admin.move(given, "Processing")
    assert fact(given) == "Driver: Dewi"


def test_texts_of_the_order_page_depend_on_status_and_role(
    browser: Browser, people: People
) -> None:
    customer, driver, admin = people.customer(), people.driver(), people.admin()
    order = customer.order()
    path = f"/orders/{order['id']}"
    window = browser(customer)

    def shown() -> str:
        """The page's text without its hidden paragraphs."""
        text = window.open(path).text
        return re.sub(r"<p[^>]* hidden>.*?</p>", "", text)

    driver.move(order, "Processing")
    assert "We are preparing it." in shown()
    driver.move(order, "Shipped")
    assert "We are preparing it." not in shown()
    assert "It is on its way." in shown()
    driver.move(order, "Completed")
    assert "Delivered. Thank you." in shown()
    assert "Delivered. Thank you." not in browser(driver).open(path).text
    answer = window.open("/board")
    assert "You do not have access to this page" in answer.text
    assert ">Back to my orders</a>" in answer.text
    assert "Back to my orders" not in browser().open("/nothing/here").text
    assert ">Show deleted</label>" in browser(admin).open("/board").text
    users = browser(admin).open(f"/users?after={int(customer.id) - 1}").text
    assert "Role changes take effect immediately" in users
    assert '<option value="user" selected>Customer</option>' in users
    assert ">user<" not in users
    assert "Customer, #" in browser(driver).open(f"{path}/history").text
    assert "(Customer)" in window.open(path).text


# --- export and history ------------------------------------------------------------------------


def test_the_export_contains_the_filtered_orders_and_no_formula(
    browser: Browser, people: People
) -> None:
    customer, admin = people.customer("=HYPERLINK(1)"), people.admin()
    wishes = ["plain", 'with "quotes", commas\nand lines', "=1+1", "@cmd", "-2"]
    for wish in wishes:
        customer.order(wish)
    answer = browser(admin).open(f"/board.csv?customer={customer.id}")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["Content-Disposition"]
    found = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["description"] for row in found][::-1] == [
        "plain",
        'with "quotes", commas\nand lines',
        "'=1+1",
        "'@cmd",
        "'-2",
    ]
    assert {row["customer"] for row in found} == {"'=HYPERLINK(1)"}
    assert browser(customer).open("/board.csv").status_code == 403


def test_pages_of_a_long_history_contain_every_event_once(browser: Browser, people: People) -> None:
    customer, admin = people.customer(), people.admin()
    order = customer.order("wish 0")
    for number in range(HISTORY_PAGE + 4):
        customer.edit(order, f"wish {number + 1}")
    customer.delete(order)
    window = browser(admin)
    assert window.open(f"/orders/{order['id']}").location == f"/orders/{order['id']}/history"
    first = window.open(f"/orders/{order['id']}/history").text
    more = re.search(r'href="(/orders/\d+/history\?after=\d+)"', first)
    assert more is not None
    second = window.open(more[1]).text
    assert "?after=" not in second
    versions = re.findall(r'<th scope="row">(\d+)</th>', first + second)
    assert versions == [str(number) for number in range(1, HISTORY_PAGE + 7)]
    assert browser(customer).open(f"/orders/{order['id']}/history").status_code == 404


# --- headers, static files, errors -------------------------------------------------------------


@pytest.mark.safety("scripts-frames-caches")
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/login", 200),
        ("/orders", 303),
        ("/nothing", 404),
        ("/api/me", 401),
        ("/api/nothing", 404),
        ("/healthz", 200),
        ("/static/nothing.js", 404),
        ("/static/js/order.js", 200),
        ("/ws/orders/1", 401),
    ],
)
def test_security_headers_are_on_every_answer(app: Flask, path: str, status: int) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    headers = upgrade if path.startswith("/ws/") else HTML
    answer = app.test_client().get(path, headers=headers)
    assert answer.status_code == status
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    if not path.startswith("/static/js"):
        assert answer.headers["Cache-Control"] == "no-store"


def test_the_offline_page_contains_no_user_data(browser: Browser, people: People) -> None:
    """The service worker caches only public files, the same for all users."""
    worker = browser().open("/worker.js")
    assert worker.status_code == 200
    assert worker.headers["Content-Type"].startswith("text/javascript")
    assert worker.headers["Cache-Control"] == "no-cache"
    assert "worker-src 'self'" in worker.headers["Content-Security-Policy"]
    kept = re.findall(r'"(/[^"]*)"', worker.text)
    assert "/offline" in kept
    window = browser(people.customer("Somebody Private"))
    for address in kept:
        answers = [one.open(address) for one in (browser(), window)]
        assert [answer.status_code for answer in answers] == [200, 200], address
        assert answers[0].data == answers[1].data, f"{address} is not the same for everybody"
        assert "Set-Cookie" not in answers[1].headers
    assert "You are offline" in window.open("/offline").text
    assert 'rel="stylesheet"' in window.open("/offline").text
    for href in re.findall(r'(?:href|src)="(/static/[^"]+)"', window.open("/offline").text):
        assert href in kept, f"{href} would be missing"


@pytest.mark.parametrize(
    ("changes", "headers", "is_secure"),
    [
        ({"TRUSTED_PROXIES": "1"}, {"X-Forwarded-Proto": "https"}, True),
        ({"TRUSTED_PROXIES": "1"}, {"X-Forwarded-Proto": "http"}, False),
        ({"COOKIE_SECURE": "yes"}, {"X-Forwarded-Proto": "https"}, False),  # no trusted proxy
        ({}, {"X-Forwarded-Proto": "https"}, False),
    ],
)
def test_behind_a_tls_proxy_cookies_are_secure_and_hsts_is_sent(
    database: str,
    people: People,
    changes: dict[str, str],
    headers: dict[str, str],
    is_secure: bool,
) -> None:
    app = create_app(settings_for(database, HOST="127.0.0.1", **changes))
    customer = people.customer()
    fields = {"email": customer.email, "password": PASSWORD}
    forwarded = {
        **headers,
        "X-Forwarded-Host": "orders.example.org",
        "X-Forwarded-For": "192.0.2.7",
    }
    origin = {"Origin": "https://orders.example.org"} if is_secure else {}
    answer = app.test_client().post("/login", data=fields, headers={**HTML, **forwarded, **origin})
    assert answer.status_code == 303, "a form from the proxy's own name is from here"
    cookies = answer.headers.getlist("Set-Cookie")
    assert len([cookie for cookie in cookies if "token" in cookie]) == 2
    for cookie in cookies:
        if "token" in cookie:
            assert ("; Secure" in cookie) == bool(changes), cookie
            assert "; HttpOnly" in cookie
            assert "; SameSite=Lax" in cookie
    strict = answer.headers.get("Strict-Transport-Security")
    assert strict == ("max-age=31536000" if is_secure else None)
    with app.app_context():
        db.engine.dispose()


@pytest.mark.parametrize(("proxies", "host"), [("1", "a.example"), ("2", "b.example")])
def test_forwarded_headers_count_only_from_trusted_proxies(
    database: str, proxies: str, host: str
) -> None:
    """Each of *n* proxies appends one value; values of the client stand before those."""
    app = create_app(settings_for(database, TRUSTED_PROXIES=proxies))
    seen: list[tuple[str, str | None, str]] = []

    @app.get("/whoami")
    @auth.public
    def whoami() -> str:
        seen.append((request.scheme, request.remote_addr, request.host))
        return ""

    app.test_client().get(
        "/whoami",
        headers={
            "X-Forwarded-For": "1.1.1.1, 2.2.2.2, 3.3.3.3",
            "X-Forwarded-Proto": "gopher, https, http" if proxies == "2" else "gopher, https",
            "X-Forwarded-Host": "evil.example, b.example, a.example",
        },
    )
    address = {"1": "3.3.3.3", "2": "2.2.2.2"}[proxies]
    assert seen == [("https", address, host)]
    with app.app_context():
        db.engine.dispose()


@pytest.mark.safety("scripts-frames-caches")
def test_pages_have_neither_inline_scripts_nor_styles(browser: Browser, people: People) -> None:
    customer, admin = people.customer(), people.admin()
    order = customer.order()
    window = browser(admin)
    for path in ("/board", "/deliveries", "/users", "/orders", f"/orders/{order['id']}", "/login"):
        text = window.open(path).text
        assert not re.search(r"<script(?![^>]*\ssrc=)", text)
        assert not re.search(r"<style|<[a-z][^<>]*\s(style|on\w+)=", text)


def test_static_files_are_compressed_and_immutable(app: Flask) -> None:
    client = app.test_client()
    text = client.get("/login", headers=HTML).text
    addresses = re.findall(r'"(/static/[0-9a-f]{12}/[^"]+)"', text)
    assert len(addresses) >= 3
    for address in addresses:
        answer = client.get(address, headers={"Accept-Encoding": "gzip, br"})
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Vary"] == "Accept-Encoding"
        plain = client.get(address, headers={"Accept-Encoding": "gzip;q=0"})
        assert "Content-Encoding" not in plain.headers
        assert gzip.decompress(answer.data) == plain.data
    plain = client.get("/static/js/order-stream.js")
    assert plain.headers["Cache-Control"] == "no-cache"
    again = client.get(
        "/static/js/order-stream.js", headers={"If-None-Match": plain.headers["ETag"]}
    )
    assert again.status_code == 304
    for outside in (
        "/static/../wsgi.py",
        "/static/%2e%2e/wsgi.py",
        "/static/000000000000/js/page.js",
    ):
        assert client.get(outside).status_code == 404


def test_the_length_of_a_compressed_page_is_random(app: Flask) -> None:
    client = app.test_client()
    answers = [client.get("/login", headers={**HTML, "Accept-Encoding": "gzip"}) for _ in range(12)]
    assert len({gzip.decompress(answer.data) for answer in answers}) == 1
    assert len({len(answer.data) for answer in answers}) > 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.MalformedRequest("?"), 400),
        (errors.CsrfFailed("?"), 403),
        (errors.Forbidden("?"), 403),
        (errors.NotFound("?"), 404),
        (errors.MethodNotAllowed("?"), 405),
        (errors.Conflict("?"), 409),
        (errors.PayloadTooLarge("?"), 413),
        (errors.TooManyRequests("?", retry_after=7), 429),
        (errors.DomainError("?"), 500),
        (errors.Unavailable("?"), 503),
    ],
)
def test_every_error_has_an_html_page(app: Flask, error: errors.DomainError, status: int) -> None:
    with app.test_request_context("/somewhere"):
        page = error_page(error)
    assert page.status_code == status
    text = page.get_data(as_text=True)
    assert "OrderTrack" in text
    assert f"{status} · {error.code}" in text
    assert (">Try again<" in text) == (status in (429, 500, 503))
    if "retry_after" in error.extra:
        assert page.headers["Retry-After"] == str(error.extra["retry_after"])
