"""The README is correct: its programs run as they are printed, its tables match the code."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from ordertrack import cli, lifecycle
from ordertrack.config import Settings
from ordertrack.lifecycle import Status
from tests.support import missing
from tests.support.servers import ROOT, Server, running_server

README = (ROOT / "README.md").read_text(encoding="utf-8")

# The only text that is replaced before a program runs.
ADDRESS = "http://localhost:8080"


def programs(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def fresh_server(postgres: object) -> Iterator[Server]:
    """A server on a database without users, as the reader has it."""
    dsn = postgres.clone()  # type: ignore[attr-defined]
    with running_server(dsn) as server:
        yield server


@pytest.fixture(scope="module")
def run(fresh_server: Server) -> Callable[..., str]:
    """Runs a program of the README against the server, and returns its output."""

    def run(*command: str, program: str, cwd: Path = ROOT) -> str:
        ran = subprocess.run(
            command,
            check=False,
            cwd=cwd,
            env=fresh_server.env,
            input=program.replace(ADDRESS, fresh_server.url),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


@pytest.fixture(scope="module")
def walked(run: Callable[..., str]) -> str:
    """The output of the walk with curl; afterwards its two users exist."""
    missing.program("curl", "apt install curl")
    if not (ROOT / ".venv" / "bin" / "flask").exists():
        missing.cannot("no .venv", "sh scripts/test makes it")
    return run("sh", "-eu", program="\n".join(programs("sh")))


def test_the_walk_with_curl_does_what_it_says(walked: str) -> None:
    first, *rest = walked.splitlines()
    assert re.fullmatch(r"Made driver dewi@example\.org with id \d+\.", first)
    customer, processing, shipped, history, refused = (
        answer for line in rest for answer in objects(line)
    )
    assert customer["role"] == "user"
    assert (processing["status"], processing["version"]) == ("Processing", 2)
    assert (shipped["status"], shipped["version"]) == ("Shipped", 3)
    assert [(event["status"], event["note"]) for event in history["events"]] == [
        ("Pending", None),
        ("Processing", None),
        ("Shipped", "in the van"),
    ]
    assert (refused["code"], refused["current"]) == ("invalid_transition", "Shipped")


def objects(line: str) -> list[dict[str, object]]:
    """The JSON objects in a line: curl prints no line end after a response."""
    found, decoder, at = [], json.JSONDecoder(), 0
    while at < len(line):
        value, at = decoder.raw_decode(line, at)
        found.append(value)
    return found


def test_the_javascript_program_sees_the_change(
    walked: str, run: Callable[..., str], tmp_path: Path
) -> None:
    node = missing.node()
    (tmp_path / "node_modules").symlink_to(missing.NODE_MODULES)
    (program,) = programs("js")
    printed = run(node, "--input-type=module", program=program, cwd=tmp_path)
    assert printed == "2 Processing\n"
    assert f"It prints `{printed.strip()}`." in README


def test_the_python_program_sees_the_change(walked: str, run: Callable[..., str]) -> None:
    (program,) = programs("python")
    printed = run(sys.executable, "-", program=program)
    assert re.fullmatch(
        r"\['order_update', \{.*'version': 2, .*'status': 'Processing'.*\}\]\n", printed
    )


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its header."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows[2:]]


def test_the_table_of_settings_is_the_settings() -> None:
    rows = {name.strip("`"): default for name, default, _ in table("Settings")}
    assert list(rows) == [field.name.upper() for field in fields(Settings)]
    # These defaults depend on other settings and are described in words.
    computed = {"DATA_DIR", "COOKIE_SECURE"}
    for field in fields(Settings):
        name, default = field.name.upper(), field.default
        if name not in computed:
            assert rows[name] == (f"`{default}`" if default not in (None, ()) else ""), name


def test_the_table_of_commands_is_the_command_line() -> None:
    commands = {f"users {name}": command for name, command in cli.users.commands.items()}
    commands |= {f"audit {name}": command for name, command in cli.audits.commands.items()}
    commands["demo"] = cli.make_demo
    commands["roles"] = cli.make_roles
    rows = {row[0].strip("`"): " ".join(row) for row in table("On the command line")}
    assert len(rows) == len(commands)
    for name, command in commands.items():
        (shown,) = (text for usage, text in rows.items() if usage.startswith(name))
        for option in command.params:
            assert not isinstance(option, click.Option) or option.opts[0] in shown, (name, option)


STANDINGS = {"driver", "admin", "owner"}


def test_the_table_of_steps_is_the_lifecycle() -> None:
    targets = [status for status in Status if status is not lifecycle.INITIAL]
    rows = {row[0]: row[1:] for row in table("The life of an order")}
    assert list(rows) == [status for status in Status if status not in lifecycle.TERMINAL]
    for status, cells in rows.items():
        for target, cell in zip(targets, cells, strict=True):
            said = set(cell.split(", ")) & STANDINGS
            assert said == lifecycle.TRANSITIONS[Status(status)].get(target, set()), (
                status,
                target,
            )


@pytest.mark.parametrize(
    "document", [path.relative_to(ROOT) for path in ROOT.glob("*.md")] + sorted(
        path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")
    ), ids=str,
)  # fmt: skip
def test_what_a_page_links_to_is_there(document: Path) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    for target in linked + re.findall(r'(?:src|href)="([^":#]+)"', text):
        assert (ROOT / document.parent / target).exists(), target
