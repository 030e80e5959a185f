"""The errors that callers see, one class for each meaning.

Each has a stable snake_case ``code`` that clients may rely on, a ``detail`` for people, and extra
members that are shown beside them. `ordertrack.problems` encodes them, for REST, pages and sockets
alike, and knows their HTTP statuses.
"""

from collections.abc import Iterable
from typing import Any


class DomainError(Exception):
    """The base of all errors that a caller is meant to see.

    *headers* are HTTP headers that belong to the answer; a socket, which has none, ignores them.

    Raise a new one each time: an exception that is raised again keeps every frame that it has
    passed through, and the request in them.
    """

    code = "internal_error"

    def __init__(
        self, detail: str, *, headers: Iterable[tuple[str, str]] = (), **extra: Any
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = tuple(headers)
        self.extra = extra


class InvalidToken(DomainError):
    """The caller's token is missing, malformed or forged, or its session was revoked."""

    code = "invalid_token"


class TokenExpired(DomainError):
    """The caller's token is genuine, but too old."""

    code = "token_expired"


class InvalidCredentials(DomainError):
    """Address and password do not match. It does not say which of them is wrong, on purpose."""

    code = "invalid_credentials"


class CsrfFailed(DomainError):
    """A cookie-authenticated write came without its CSRF token, or from another site."""

    code = "csrf_failed"


class Forbidden(DomainError):
    """The caller may see the order or user, but is not allowed to do this with it."""

    code = "forbidden"


class NotFound(DomainError):
    """It does not exist, or the caller may not see it. Both look the same, on purpose."""

    code = "not_found"


class MethodNotAllowed(DomainError):
    code = "method_not_allowed"


class InvalidTransition(DomainError):
    """The lifecycle has no such transition. Carries ``current`` and ``allowed``."""

    code = "invalid_transition"


class Conflict(DomainError):
    """The change does not fit the present state, as when an order is in a final status."""

    code = "conflict"


class EmailTaken(Conflict):
    code = "email_taken"


class VersionMismatch(DomainError):
    """``If-Match`` names another version than the order has now. Carries ``current``."""

    code = "version_mismatch"


class ValidationFailed(DomainError):
    """The input does not have the required form. Carries ``errors``: [{pointer, message}]."""

    code = "validation_failed"

    def __init__(self, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail, errors=errors or [])

    @classmethod
    def at(cls, pointer: str, message: str) -> "ValidationFailed":
        """For the common case of one wrong field. *pointer*: a JSON pointer such as ``/email``."""
        return cls(
            f"{pointer.lstrip('/') or 'body'}: {message}",
            [{"pointer": pointer, "message": message}],
        )


class MalformedRequest(DomainError):
    """The request cannot be parsed: broken JSON, bad encoding, a broken handshake."""

    code = "malformed_request"


class UnsupportedMediaType(DomainError):
    code = "unsupported_media_type"


class UpgradeRequired(DomainError):
    """The address is a WebSocket's, and the request is no handshake of a supported version."""

    code = "upgrade_required"


class PayloadTooLarge(DomainError):
    code = "payload_too_large"


class TooManyRequests(DomainError):
    """The caller should wait. May carry ``retry_after``, in seconds."""

    code = "too_many_requests"


class IdempotencyKeyReused(DomainError):
    """An ``Idempotency-Key`` was sent before with another body."""

    code = "idempotency_key_reused"


class Unavailable(DomainError):
    """The server or its database cannot answer now. Carries ``retry_after``, in seconds.

    After a write the outcome may be unknown. The client repeats it: PUT is idempotent, and so is a
    POST with an ``Idempotency-Key``.
    """

    code = "unavailable"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail, retry_after=retry_after)


class TookTooLong(Unavailable):
    """A statement reached its time limit."""
