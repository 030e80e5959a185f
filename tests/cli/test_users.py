"""``flask --app wsgi users …``"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ordertrack.extensions import state
from tests.cli.conftest import Own
from tests.support.databases import JWT_SECRET
from tests.support.servers import ROOT

PASSWORD = "a long enough password"


def create(own: Own, **options: str) -> tuple[int, str]:
    given = {
        "email": "dewi@example.org",
        "name": "Dewi",
        "role": "driver",
        "password": PASSWORD,
        **options,
    }
    arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
    result = own.flask("users", "create", *arguments)
    return result.exit_code, result.output


def sign_in(own: Own, email: str = "dewi@example.org", password: str = PASSWORD) -> dict[str, str]:
    answer = own.people.nobody.post("/api/login", json={"email": email, "password": password})
    assert answer.status_code == 200, answer.text
    user: dict[str, str] = answer.json()["user"]
    return user


@pytest.mark.parametrize("role", ["user", "driver", "admin"])
def test_a_user_of_any_role_is_created_and_can_log_in(own: Own, role: str) -> None:
    code, output = create(own, role=role)
    assert code == 0, output
    user = sign_in(own)
    assert (user["role"], user["name"]) == (role, "Dewi")
    assert output == f"Made {role} dewi@example.org with id {user['id']}.\n"


def test_a_password_that_is_left_out_is_asked_for_twice_and_not_shown(own: Own) -> None:
    result = own.flask(
        "users", "create", "--email", "dewi@example.org", "--name", "Dewi", "--role", "driver",
        typed=f"{PASSWORD}\n{PASSWORD}\n",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert PASSWORD not in result.output
    sign_in(own)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"password": "short"}, "password: "),
        ({"email": "not an address"}, "email: must be an e-mail address"),
        ({"name": " "}, "name: "),
        ({"role": "boss"}, "'boss' is not one of"),
    ],
)
def test_invalid_values_are_refused_and_nothing_is_stored(
    own: Own, options: dict[str, str], told: str
) -> None:
    code, output = create(own, **options)
    assert code != 0
    assert told in output
    assert "Traceback" not in output
    assert own.flask("users", "list").output == ""


def test_an_address_belongs_to_one_user_in_any_case(own: Own) -> None:
    create(own)
    code, output = create(own, email="DEWI@Example.org")
    assert code == 1
    assert output == "Error: An account with this e-mail address exists already.\n"


def test_the_list_shows_everybody_with_role_and_activity(own: Own) -> None:
    admin = own.people.admin("Amir")
    customer = own.people.customer("Chandra")
    admin.api.patch(f"/api/admin/users/{customer.id}", json={"active": False})
    lines = own.flask("users", "list").output.splitlines()
    assert [line.split() for line in lines] == [
        [admin.id, "admin", admin.email, "Amir"],
        [customer.id, "user", customer.email, "Chandra", "(deactivated)"],
    ]


def test_a_new_role_takes_effect_at_once_also_for_open_sessions(own: Own) -> None:
    customer = own.people.customer()
    assert customer.api.get("/api/admin/users").status_code == 403
    result = own.flask("users", "role", customer.email.upper(), "admin")
    assert result.output == f"{customer.email} is admin now.\n"
    assert customer.api.get("/api/admin/users").status_code == 200


def test_an_unknown_address_is_reported(own: Own) -> None:
    result = own.flask("users", "role", "nobody@example.org", "admin")
    assert result.exit_code == 1
    assert result.output == "Error: There is no user with the address nobody@example.org.\n"


def run(**environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", "users", "list"],
        check=False,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
    )


def test_users_can_be_created_as_the_documentation_says(own: Own) -> None:
    admin = own.people.admin()
    ran = run(DB_DSN=own.dsn, JWT_SECRET=JWT_SECRET)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == [admin.id, "admin", admin.email, *admin.name.split()]


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not tmp_path: for root another user runs PostgreSQL, and has to reach it."""
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-test-"))
    yield folder
    shutil.rmtree(folder)


def test_a_command_stops_the_embedded_database_that_it_started(data_dir: Path) -> None:
    ran = run(DATA_DIR=str(data_dir))
    assert ran.returncode == 1
    assert "this command only reads" in ran.stderr
    assert (data_dir / "postgres" / "PG_VERSION").exists()
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_a_reset_link_sets_a_new_password(own: Own) -> None:
    create(own)
    result = own.flask("users", "reset-link", "DEWI@example.org", "--url", "https://shop.example/")
    assert result.exit_code == 0, result.output
    link = result.stdout.strip()
    assert link.startswith("https://shop.example/reset?token=")
    body = {"token": link.partition("token=")[2], "password": "an entirely new password"}
    assert own.people.nobody.post("/api/password-reset", json=body).status_code == 204
    sign_in(own, password="an entirely new password")


def test_a_reset_link_has_this_servers_address(own: Own) -> None:
    create(own)
    own_state = state(own.app)
    own_state.settings = replace(own_state.settings, port=8931)
    result = own.flask("users", "reset-link", "dewi@example.org")
    assert result.stdout.startswith("http://localhost:8931/reset?token=")


def test_a_reset_link_needs_an_active_user(own: Own) -> None:
    result = own.flask("users", "reset-link", "nobody@example.org")
    assert result.exit_code == 1
    assert "no active user with the address nobody@example.org" in result.output
