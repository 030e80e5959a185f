"""The name of a session's client on the account page."""

import pytest

from ordertrack.web.pages.account import client_name

BLINK = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0"
IPHONE = "iPhone; CPU iPhone OS 18_1 like Mac OS X"


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        (
            f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {BLINK} Safari/537.36 Edg/131.0.0.0",
            "Edge on Windows",
        ),
        (f"Mozilla/5.0 ({IPHONE}) AppleWebKit/605.1.15 Safari/604.1", "Safari on iPhone"),
        (f"Mozilla/5.0 (Linux; Android 10; K) {BLINK} Mobile Safari/537.36", "Chrome on Android"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Firefox/132.0", "Firefox on Linux"),
        ("python-requests/2.32.3", "python-requests"),
        ("", "Unknown client"),
        ("<script>", "Unknown client"),
    ],
)
def test_a_user_agent_becomes_a_readable_name(user_agent: str, name: str) -> None:
    assert client_name(user_agent) == name
