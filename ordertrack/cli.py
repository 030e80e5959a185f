"""The command line: ``flask --app wsgi users …``. It stands above roles: who may run it owns the
server.
"""

import click
from flask import Flask
from flask.cli import AppGroup

from ordertrack.errors import DomainError
from ordertrack.payloads import Registration, parse
from ordertrack.policy import Role
from ordertrack.services import accounts

users = AppGroup("users", help="Make and list users, change their roles.")

_ROLE = click.Choice([role.value for role in Role])


@users.command("create")
@click.option("--email", required=True)
@click.option("--name", required=True)
@click.option("--role", type=_ROLE, required=True)
@click.option("--password", help="Asked for when it is left out.")
def create(email: str, name: str, role: str, password: str | None) -> None:
    """Make a user with any role."""
    if password is None:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    with _clear_errors():
        form = parse({"name": name, "email": email, "password": password}, Registration)
        account = accounts.register(form.name, form.email, form.password, Role(role))
    click.echo(f"Made {account.role} {account.email} with id {account.id}.")


@users.command("list")
def list_users() -> None:
    """Show every user: id, role, activity, address, name."""
    for account in accounts.all_users():
        active = "" if account.active else " (deactivated)"
        click.echo(f"{account.id:>6}  {account.role:<6} {account.email}  {account.name}{active}")


@users.command("role")
@click.argument("email")
@click.argument("role", type=_ROLE)
def set_role(email: str, role: str) -> None:
    """Give the user with the address EMAIL the role ROLE."""
    with _clear_errors():
        account = accounts.set_role(email, Role(role))
    click.echo(f"{account.email} is {account.role} now.")


class _clear_errors:
    """Domain errors are for people: shown as they are, exit status 1."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DomainError):
            lines = [
                f"{entry['pointer'].lstrip('/')} {entry['message']}"
                for entry in error.extra.get("errors", [])
            ]
            raise click.ClickException("; ".join(lines) or error.detail) from error


def init_app(app: Flask) -> None:
    app.cli.add_command(users)
