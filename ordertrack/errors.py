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
    """The caller's token is missing, malformed, forged, or was signed out."""

    code = "invalid_token"


class TokenExpired(DomainError):
    """The token was good once; its time is over."""

    code = "token_expired"


class InvalidCredentials(DomainError):
    """Address and password do not belong together. Says no more than that on purpose."""

    code = "invalid_credentials"


class CsrfFailed(DomainError):
    """A cookie-authenticated write came without its CSRF token, or from another site."""

    code = "csrf_failed"


class Forbidden(DomainError):
    """The caller may know that the thing exists, but may not do this with it."""

    code = "forbidden"


class NotFound(DomainError):
    """It does not exist, or the caller may not know that it does: both look the same."""

    code = "not_found"


class MethodNotAllowed(DomainError):
    code = "method_not_allowed"


class InvalidTransition(DomainError):
    """The order's status does not lead to the wanted one. Carries ``current`` and ``allowed``."""

    code = "invalid_transition"


class Conflict(DomainError):
    """The change does not fit the present state: an address taken, an order that is final."""

    code = "conflict"


class EmailTaken(Conflict):
    code = "email_taken"


class VersionMismatch(DomainError):
    """``If-Match`` named a version that is no longer the order's. Carries ``current``."""

    code = "version_mismatch"


class ValidationFailed(DomainError):
    """The input is not of the required form. Carries ``errors``: [{pointer, message}]."""

    code = "validation_failed"

    def __init__(self, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail, errors=errors or [])

    @classmethod
    def at(cls, pointer: str, message: str) -> "ValidationFailed":
        """The common case: one field is wrong. *pointer* is a JSON pointer such as ``/email``."""
        return cls(f"{pointer.lstrip('/') or 'body'}: {message}", [_entry(pointer, message)])


def _entry(pointer: str, message: str) -> dict[str, str]:
    return {"pointer": pointer, "message": message}


class MalformedRequest(DomainError):
    """The bytes are not what they claim to be: broken JSON, wrong content type, bad encoding."""

    code = "malformed_request"


class UnsupportedMediaType(DomainError):
    code = "unsupported_media_type"


class UpgradeRequired(DomainError):
    """The address is a WebSocket's, and the request is no handshake of a version spoken here."""

    code = "upgrade_required"


class PayloadTooLarge(DomainError):
    code = "payload_too_large"


class TooManyRequests(DomainError):
    """Slow down. ``retry_after`` is in seconds."""

    code = "too_many_requests"


class IdempotencyKeyReused(DomainError):
    """An ``Idempotency-Key`` came again with another body."""

    code = "idempotency_key_reused"


class Unavailable(DomainError):
    """The database cannot answer now; nothing is known to be wrong with the request.

    After a write the outcome may be unknown: repeat it (PUT and keyed POST have no second effect).
    """

    code = "unavailable"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail, retry_after=retry_after)


class TookTooLong(Unavailable):
    """A statement ran into its time limit."""
