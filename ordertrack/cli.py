"""The command line: ``flask --app wsgi users …``, ``demo``, ``audit …``, ``roles``.

It needs no login and no role, because its user has access to the server itself.
"""

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from flask import Flask
from flask.cli import AppGroup, with_appcontext
from flask_migrate import upgrade
from sqlalchemy.exc import DBAPIError

from ordertrack import auth
from ordertrack.config import SettingsError, reached_at
from ordertrack.errors import DomainError
from ordertrack.extensions import state
from ordertrack.policy import Role
from ordertrack.schemas import Registration, parse
from ordertrack.services import (
    accounts,
    audit,
    database_roles,
    demo,
    log_adoption,
    passwords,
    schema,
)
from ordertrack.services.accounts import Account
from ordertrack.services.schema import SchemaTooNew

# With fewer orders a check ends before a progress bar could be read.
_MIN_ORDERS_FOR_BAR = 5_000


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Show domain errors as plain text, without a traceback, with exit status 1."""
    try:
        yield
    except DomainError as error:
        lines = [
            f"{entry['pointer'].lstrip('/')}: {entry['message']}"
            for entry in error.extra.get("errors", [])
        ]
        raise click.ClickException("\n".join(lines) or error.detail) from error


@contextmanager
def _tables(*, migrate: bool = False) -> Iterator[None]:
    """As `_plain_errors`, on tables that are up to date; with *migrate*, update them first."""
    with _plain_errors():
        try:
            with schema.explain_errors():
                if schema.is_behind():
                    if not migrate:
                        raise click.ClickException(
                            "The tables are not up to date, and this command only reads."
                            " Start the server, or run: flask --app wsgi db upgrade"
                        )
                    upgrade()
        except (SchemaTooNew, SettingsError) as error:
            raise click.ClickException(str(error)) from error
        yield


# --- users -------------------------------------------------------------------------------------

users = AppGroup("users", help="Create and list users, change their roles.")

_ROLE = click.Choice([role.value for role in Role])


@users.command("create")
@click.option("--email", required=True)
@click.option("--name", required=True)
@click.option("--role", type=_ROLE, required=True)
@click.option("--password", help="Asked for if left out.")
def create_user(email: str, name: str, role: str, password: str | None) -> None:
    """Create a user with any role."""
    if password is None:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    with _tables(migrate=True):
        form = parse({"name": name, "email": email, "password": password}, Registration)
        account = accounts.register(form.name, form.email, form.password, Role(role))
    click.echo(f"Made {account.role} {account.email} with id {account.id}.")


@users.command("list")
def list_users() -> None:
    """Show every user: id, role, address, name."""
    with _tables():
        found = accounts.all_users()
    for account in found:
        click.echo(_line(account) + ("" if account.active else " (deactivated)"))


def _line(account: Account) -> str:
    return f"{account.id:>6}  {account.role:<6}  {account.email}  {account.name}"


@users.command("role")
@click.argument("email")
@click.argument("role", type=_ROLE)
def set_role(email: str, role: str) -> None:
    """Give the user with the address EMAIL the role ROLE."""
    with _tables(migrate=True):
        account = accounts.set_role(email, Role(role))
    click.echo(f"{account.email} is {account.role} now.")


@users.command("reset-link")
@click.argument("email")
@click.option("--url", help="This server's public URL. Left out: that of HOST and PORT.")
def reset_link(email: str, url: str | None) -> None:
    """Print a one-time link by which the user with the address EMAIL sets a new password."""
    with _plain_errors():
        reset = passwords.reset_for(email)
    if url is None:
        settings = state().settings
        url = reached_at(settings.host, settings.port)
    click.echo(f"{url.rstrip('/')}/reset?token={auth.sign_reset(reset)}")
    click.echo("It works once, within a day.", err=True)


# --- demo --------------------------------------------------------------------------------------


@click.command("demo")
@click.option("--password", help="For all three accounts. Generated if left out.")
@click.option("--beside-others", is_flag=True, help="Allow it in a database with other users.")
@with_appcontext
def make_demo(password: str | None, beside_others: bool) -> None:
    """Create three accounts and some orders to look at."""
    # Generated, because a demo may be reachable from other machines.
    password = password or secrets.token_urlsafe(9)
    with _tables(migrate=True):
        parse({"name": "-", "email": "demo@example.org", "password": password}, Registration)
        made = demo.make(password, beside_others=beside_others)
    click.echo(f"Made {made.orders} orders, and three accounts with the password {password}")
    for account in made.people:
        click.echo(_line(account))


# --- audit -------------------------------------------------------------------------------------

audits = AppGroup("audit", help="Verify the audit trail, or adopt a restored one.")


@audits.command("verify")
def verify() -> None:
    """Check the history of every order. Names the first invalid row and exits with 1."""
    checked = audit.Checked(0, 0, 0)
    with _tables():
        total = audit.last_order()
        bar = click.progressbar(
            length=total, label="Checking", hidden=total < _MIN_ORDERS_FOR_BAR, file=sys.stderr
        )
        try:
            with bar:
                for latest in audit.verify():
                    bar.update(latest.upto - checked.upto)
                    checked = latest
        except audit.LogDamaged as damage:
            raise click.ClickException(str(damage)) from damage
    click.echo(f"{checked.orders} orders, {checked.events} events: the log is whole.")


@audits.command("adopt")
def adopt() -> None:
    """Once after restoring a dump into another PostgreSQL cluster, before serving."""
    with _tables(migrate=True):
        rows = log_adoption.adopt()
    click.echo(f"{rows} rows of the log came from another cluster, and are marked as old now.")


# --- database roles ----------------------------------------------------------------------------


@click.command("roles")
@click.option(
    "--as",
    "superuser_dsn",
    required=True,
    help="libpq DSN of a superuser, to any database of that server.",
)
@with_appcontext
def make_roles(superuser_dsn: str) -> None:
    """Create the database of DB_DSN and MIGRATE_DSN, and both roles: one that serves, one that owns
    the tables. What exists is kept."""
    settings = state().settings
    try:
        database_roles.make(superuser_dsn, settings)
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    except DBAPIError as error:
        raise click.ClickException(str(error.orig).strip()) from error
    click.echo("The roles are made. Start the server, or run: flask --app wsgi db upgrade")


def init_app(app: Flask) -> None:
    for command in (users, make_demo, audits, make_roles):
        app.cli.add_command(command)
