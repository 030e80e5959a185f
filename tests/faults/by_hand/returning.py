"""Very many clients come back at once, and each is let in however long that takes.

    python -m tests.faults.by_hand.returning [clients]

All of them open a WebSocket at the same moment, from many addresses, send CONNECT as soon as they
may, and then ask for one order with what they missed. It prints how long that took and what the
server counted. Exit 1 if a single one was refused, closed, or has missed an event. 20,000 clients
need that many descriptors in the server, which root may be given; else it takes as many as it can.
"""

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import time
from collections import Counter

from tests.support.bare_client import BareClient, allow_descriptors
from tests.support.databases import running_postgres
from tests.support.servers import running_server

CLIENTS = 20_000
PER_PROCESS = 5_000  # of the clients' side
PER_ADDRESS = 500

# For everything else that a process has open.
SPARE = 500

# The server's work and the clients' share one machine, so this is only there to end.
PATIENCE = 900.0


def raise_descriptors(wanted: int) -> int:
    """Raise the limit as far as it goes; how many this process and its children may have."""
    with contextlib.suppress(ValueError, OSError):  # only root may raise the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    return allow_descriptors()


async def come_back(port: int, token: str, order: str, address: str) -> str:
    """How one client fared; all of them stay until the last has come."""
    client = BareClient()
    try:
        async with at_once:
            await client.ask(port, token, source=address)
        await client.expect("40")
        answer = await client.call("subscribe", {"order_id": order, "after": 1})
    except (OSError, asyncio.IncompleteReadError) as error:
        return f"lost: {type(error).__name__} {client.close_code or ''} {str(error)[:80]}"
    if not answer["ok"]:
        return f"refused: {answer['error']['code']}"
    if [event["version"] for event in answer["events"]] != [2, 3]:
        return "missed an event"
    staying.append(asyncio.create_task(client.listen()))
    return "back"


# Handshakes at once in each process, so that none is slow to send CONNECT itself: real clients have
# a machine of their own. How many wait for the answer is not bounded.
at_once = asyncio.Semaphore(250)

staying: list[asyncio.Task[None]] = []  # one for each that is back: it answers pings


async def crowd(port: int, token: str, order: str, first: int, number: int) -> None:
    addresses = [
        f"127.0.{1 + (first + n) // PER_ADDRESS // 250}.{1 + (first + n) // PER_ADDRESS % 250}"
        for n in range(number)
    ]
    async with asyncio.timeout(PATIENCE):
        found = Counter(
            await asyncio.gather(*(come_back(port, token, order, one) for one in addresses))
        )
        print(json.dumps(found), flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until the others are back, too
    gone = sum(task.done() for task in staying)
    print(json.dumps({"back": -gone, "closed later": gone} if gone else {}), flush=True)


def worker(port: str, token: str, order: str, first: str, number: str) -> None:
    asyncio.run(crowd(int(port), token, order, int(first), int(number)))


def main(clients: int) -> int:
    clients = min(clients, raise_descriptors(clients + SPARE) - SPARE)
    room = str(clients + 100)
    with (
        running_postgres() as postgres,
        running_server(
            postgres.clone(), MAX_CONNECTIONS=room, MAX_CONNECTIONS_PER_USER=room
        ) as server,
    ):
        admin = server.people.admin()
        order = admin.order()
        admin.edit(order, "second")
        admin.edit(order, "third")
        began = time.monotonic()
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.faults.by_hand.returning", "worker"),
                    *(str(server.port), admin.token, order["id"]),
                    *(str(first), str(min(PER_PROCESS, clients - first))),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for first in range(0, clients, PER_PROCESS)
        ]
        found: Counter[str] = Counter()
        for process in processes:
            assert process.stdout is not None
            found.update(json.loads(process.stdout.readline()))
        took = time.monotonic() - began
        metrics = server.api.get("/metrics").text
        for process in processes:
            found.update(json.loads(process.communicate()[0]))
    print(f"{clients} clients in {took:.1f} s: {dict(found)}")
    wanted = ("ordertrack_connections", "ordertrack_handshakes", "ordertrack_slow")
    print("\n".join(line for line in metrics.splitlines() if line.startswith(wanted)))
    return 0 if found == {"back": clients} else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else CLIENTS))
