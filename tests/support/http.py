"""A small HTTP client for tests: the same for an application in this process and for a server."""

import json as jsonlib
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Protocol

import requests
from flask import Flask

TIMEOUT = 30


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. *headers* are looked up whatever their case."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return jsonlib.loads(self.content)

    @property
    def code(self) -> str | None:
        """The problem's stable code; None when the answer is no problem."""
        if self.headers.get("Content-Type") != "application/problem+json":
            return None
        code: str = self.json()["code"]
        return code


class Transport(Protocol):
    """Sends one request; *path* begins with a slash."""

    def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> Answer: ...


class InProcess:
    """Calls a Flask application directly."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
        # A client for each request: nothing (cookies) is carried from one to the next.
        response = self._app.test_client(use_cookies=False).open(
            path, method=method, headers=headers, data=body
        )
        return Answer(response.status_code, response.headers, response.data)


class OverTheWire:
    """Speaks to a server. Keeps connections; safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        # Nothing is carried from one request to the next.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=64)
        self._session.mount("http://", adapter)

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
        response = self._session.request(
            method,
            self._url + path,
            headers=headers,
            data=body,
            timeout=TIMEOUT,
            allow_redirects=False,
        )
        return Answer(response.status_code, response.headers, response.content)

    def close(self) -> None:
        self._session.close()


class Api:
    """Requests with a token, or without one: ``api.put("/api/orders/1/status", json={…})``.

    *body* sends bytes as they are (as application/json unless headers say otherwise).
    """

    def __init__(self, transport: Transport, token: str | None = None) -> None:
        self.transport = transport
        self.token = token

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent: dict[str, str] = {}
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        if json is not None:
            body = jsonlib.dumps(json).encode()
        if body is not None:
            sent["Content-Type"] = "application/json"
        return self.transport.send(method, path, {**sent, **(headers or {})}, body)

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> Answer:
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Any) -> Answer:
        return self.request("PUT", path, **options)

    def patch(self, path: str, **options: Any) -> Answer:
        return self.request("PATCH", path, **options)

    def delete(self, path: str, **options: Any) -> Answer:
        return self.request("DELETE", path, **options)
