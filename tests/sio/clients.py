"""Clients that speak Engine.IO and Socket.IO by hand, so that tests see every packet."""

import json
from typing import Any

import requests

from tests.server.echo import Echo
from tests.server.wire import Peer


class WebSocketClient(Peer):
    """A client on a WebSocket, by default connected to the default namespace."""

    def __init__(self, port: int, *, join: bool = True, **options: Any) -> None:
        super().__init__(port, "/socket.io/?EIO=4&transport=websocket", **options)
        self.hello = json.loads(self.read_text()[1:])
        if join:
            self.text('40{"token":"good"}')
            self.sid = json.loads(self.packet()[2:])["sid"]

    def packet(self) -> str:
        """The next packet that is not a ping, which is answered."""
        while True:
            text = self.read_text()
            if text != "2":
                return text
            self.text("3")

    def call(self, number: int, event: str, *arguments: Any) -> Any:
        self.text(f"42{number}{json.dumps([event, *arguments])}")
        answer = self.packet()
        assert answer.startswith(f"43{number}["), answer
        return json.loads(answer[len(f"43{number}") :])


class PollingClient:
    """A client on HTTP long-polling, with an open session."""

    def __init__(self, server: Echo) -> None:
        self._port = server.port
        self.base = self.base_of(server)
        self.hello = json.loads(requests.get(self.base, timeout=10).text[1:])
        self.url = f"{self.base}&sid={self.hello['sid']}"

    @staticmethod
    def base_of(server: Echo) -> str:
        return f"{server.url}/socket.io/?EIO=4&transport=polling"

    def post(self, body: str | bytes) -> int:
        data = body.encode() if isinstance(body, str) else body
        return requests.post(self.url, data=data, timeout=10).status_code

    def get(self) -> tuple[int, list[str]]:
        answer = requests.get(self.url, timeout=10)
        return answer.status_code, answer.text.split("\x1e")

    def probe(self) -> Peer:
        """A WebSocket that the session may upgrade to."""
        path = f"/socket.io/?EIO=4&transport=websocket&sid={self.hello['sid']}"
        return Peer(self._port, path)
