"""Makes and verifies tokens, and finds the caller of a request from its header or cookies.

No other module reads or makes tokens or session cookies, so that every way in checks the same.
"""

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final, TypeVar

import jwt as pyjwt
from flask import Flask, Response, after_this_request, current_app, g, request
from flask.globals import request_ctx
from flask_jwt_extended import (
    create_access_token,
    create_refresh_token,
    get_jwt,
    set_access_cookies,
    set_refresh_cookies,
    unset_jwt_cookies,
    verify_jwt_in_request,
)
from flask_jwt_extended.exceptions import CSRFError, JWTExtendedException
from itsdangerous import BadData, URLSafeTimedSerializer

from ordertrack import logs
from ordertrack.config import Settings
from ordertrack.errors import CsrfFailed, DomainError, InvalidToken, TokenExpired
from ordertrack.extensions import state
from ordertrack.origins import Origins
from ordertrack.policy import Caller
from ordertrack.services import accounts, passwords
from ordertrack.services.accounts import Login
from ordertrack.services.passwords import Reset

ISSUER = AUDIENCE = "ordertrack"
ALGORITHM: Final = "HS256"

# Seconds that a reset link works: long enough to be sent and read the next morning.
RESET_SECONDS: Final = 86_400

_UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class Tokens:
    access: str
    refresh: str
    expires_in: int  # seconds until the access token expires


@dataclass(frozen=True, slots=True)
class Credential:
    """A verified access token: its caller, and when it expires (Unix time in seconds)."""

    caller: Caller
    expires_at: float


def jwt_options(settings: Settings) -> dict[str, Any]:
    """Flask-JWT-Extended's configuration, with every default that matters written down."""
    return {
        "JWT_SECRET_KEY": settings.signing_secret,
        "JWT_ALGORITHM": ALGORITHM,
        "JWT_DECODE_ALGORITHMS": [ALGORITHM],
        "JWT_ENCODE_ISSUER": ISSUER,
        "JWT_DECODE_ISSUER": ISSUER,
        "JWT_ENCODE_AUDIENCE": AUDIENCE,
        "JWT_DECODE_AUDIENCE": AUDIENCE,
        "JWT_ACCESS_TOKEN_EXPIRES": timedelta(seconds=settings.access_token_seconds),
        "JWT_REFRESH_TOKEN_EXPIRES": timedelta(seconds=settings.refresh_token_seconds),
        "JWT_TOKEN_LOCATION": ["headers", "cookies"],
        "JWT_COOKIE_SECURE": settings.cookie_secure,
        "JWT_COOKIE_SAMESITE": "Lax",
        "JWT_COOKIE_CSRF_PROTECT": True,
        "JWT_CSRF_CHECK_FORM": True,
        # Pages have the CSRF token in their forms and in a meta element instead.
        "JWT_CSRF_IN_COOKIES": False,
    }


def log_in(email: str, password: str, user_agent: str) -> tuple[Login, Tokens]:
    """Check the credentials, start a session and make its tokens. Raises `InvalidCredentials`."""
    lifetime = timedelta(seconds=state().settings.refresh_token_seconds)
    login = accounts.log_in(email, password, lifetime, user_agent=user_agent)
    return login, _tokens(login)


def renew(caller: Caller) -> tuple[Login, Tokens]:
    """Make new tokens for the session of a verified refresh token.

    Raises `InvalidToken` when the session was revoked or has expired, or the user was deactivated.
    """
    login = accounts.continue_session(caller)
    return login, _tokens(login)


def _tokens(login: Login) -> Tokens:
    logs.note_user(login.account.id)
    session_id = login.session_id
    claims = {"sid": str(session_id), "csrf": _csrf_token(session_id)}
    subject = str(login.account.id)
    return Tokens(
        access=create_access_token(subject, additional_claims=claims),
        refresh=create_refresh_token(subject, additional_claims=claims),
        expires_in=state().settings.access_token_seconds,
    )


View = TypeVar("View", bound=Callable[..., Any])


def public(view: View) -> View:
    """Mark a view that needs no token. All other views need an access token."""
    view.__dict__["is_public"] = True
    return view


def takes_refresh_token(view: View) -> View:
    """Mark a view that needs the refresh token instead of the access token."""
    view.__dict__["takes_refresh_token"] = True
    return view


def caller() -> Caller:
    """The caller of the current request, verified before the view ran."""
    caller: Caller = g.caller
    return caller


def init_app(app: Flask) -> None:
    """Require an access token for every view that is not marked otherwise."""

    @app.before_request
    def authenticate() -> None:
        asked = request_ctx.request  # once: each use of `request` looks it up again
        rule = asked.url_rule
        view = app.view_functions.get(rule.endpoint) if rule is not None else None
        # Flask answers OPTIONS itself, with the methods of the route alone.
        if view is None or "is_public" in view.__dict__ or asked.method == "OPTIONS":
            return
        refresh = "takes_refresh_token" in view.__dict__
        if "HTTP_AUTHORIZATION" in asked.environ:
            caller = from_request(refresh=refresh)
        else:
            if asked.method in _UNSAFE:
                refuse_other_sites()
            try:
                caller = from_request(refresh=refresh)
            except (InvalidToken, TokenExpired):
                if refresh:
                    raise
                caller = _continue_by_cookie()
        g.caller = caller
        logs.note_user(caller.user_id)


def _continue_by_cookie() -> Caller:
    """The caller by the refresh cookie, for a browser whose access token has expired.

    The answer gets the new access token's cookie. The CSRF token is checked as well; it belongs to
    the session, so a form that was open for hours still has the right one. Raises what
    `from_request` and `renew` raise.
    """
    caller = from_request(refresh=True, location="cookies")
    _, tokens = renew(caller)

    @after_this_request
    def set_renewed_cookie(response: Response) -> Response:
        set_access_cookie(response, tokens)
        return response

    return caller


def from_request(*, refresh: bool = False, location: str | None = None) -> Caller:
    """Verify the current request's token: from the header, or a cookie (CSRF-checked on writes).

    Raises `InvalidToken`, `TokenExpired`, `CsrfFailed`.
    """
    if location is None and not refresh:
        token = bearer(request.environ.get("HTTP_AUTHORIZATION"))
        if token is not None:
            return from_token(token).caller
    try:
        verify_jwt_in_request(refresh=refresh, locations=location)
    except (JWTExtendedException, pyjwt.PyJWTError) as error:
        raise _refusal(error) from error
    return _caller(get_jwt())


# --- browsers ----------------------------------------------------------------------------------


def set_session_cookies(response: Response, tokens: Tokens) -> None:
    """Log the browser in: HttpOnly and SameSite=Lax cookies that expire with their tokens."""
    set_access_cookie(response, tokens)
    set_refresh_cookies(response, tokens.refresh, max_age=state().settings.refresh_token_seconds)


def set_access_cookie(response: Response, tokens: Tokens) -> None:
    """Set the access token's cookie alone."""
    set_access_cookies(response, tokens.access, max_age=tokens.expires_in)


def clear_cookies(response: Response) -> None:
    """Log the browser out; `accounts.log_out` revokes the session."""
    unset_jwt_cookies(response)


def has_cookies() -> bool:
    """Whether the browser sent a session's cookies; nothing is verified."""
    names = ("JWT_ACCESS_COOKIE_NAME", "JWT_REFRESH_COOKIE_NAME")
    return any(current_app.config[name] in request.cookies for name in names)


def csrf_token() -> str:
    """The CSRF token of the current caller's forms."""
    return _csrf_token(caller().session_id)


def _csrf_token(session_id: int) -> str:
    # The same for the whole session, so that an open form stays valid when tokens are renewed. Both
    # tokens have it as a claim, where Flask-JWT-Extended's check expects it.
    key: str = current_app.config["JWT_SECRET_KEY"]
    return hmac.digest(key.encode(), f"csrf:{session_id}".encode(), "sha256").hex()[:32]


def refuse_other_sites() -> None:
    """Raises `CsrfFailed` when a browser says that another site sent this request.

    It protects forms that have no session yet (a login could be forged, too), and the others a
    second time. Other clients send no such header, and have no cookies to abuse.
    """
    if not Origins(frozenset(state().settings.allowed_origins)).permit(request.environ):
        raise CsrfFailed("The request came from another site.")


# --- tokens ------------------------------------------------------------------------------------


def from_token(token: Any) -> Credential:
    """Verify an access token, from a header or a socket's handshake.

    Needs an application context. Raises `InvalidToken`, `TokenExpired`.
    """
    if not isinstance(token, str) or not token or not token.isascii():
        raise InvalidToken("An access token is required.")
    try:
        credential: Credential = state().verify_token(token)
    except (JWTExtendedException, pyjwt.PyJWTError) as error:
        raise _refusal(error) from error
    if credential.expires_at <= time.time():
        raise _refusal(pyjwt.ExpiredSignatureError())
    return credential


def verifier() -> Callable[[str], Credential]:
    """Make the cache through which `from_token` verifies the tokens of one application.

    Verifying a signature costs more than all other checks together, and a client sends the same
    token for minutes. A genuine token stays genuine; only its expiry is checked each time.
    """
    return lru_cache(maxsize=8192)(_verify)


def _verify(token: str) -> Credential:
    # Flask-JWT-Extended's `decode_token` calls this as well, after it has read the token twice in
    # order to find a key for it: three times the work, which each new client causes once.
    key: str = current_app.config["JWT_SECRET_KEY"]
    claims = pyjwt.decode(token, key, algorithms=[ALGORITHM], issuer=ISSUER, audience=AUDIENCE)
    if claims.get("type") != "access" or "exp" not in claims:
        raise InvalidToken("This is not an access token.")
    return Credential(_caller(claims), float(claims["exp"]))


def token_from_cookies(header: str | None) -> str | None:
    """The access token in a Cookie header, if there is one."""
    try:
        cookies = SimpleCookie(header or "")
    except CookieError:
        return None
    found = cookies.get(current_app.config["JWT_ACCESS_COOKIE_NAME"])
    return found.value if found else None


def bearer(header: str | None) -> str | None:
    """The token in an ``Authorization: Bearer …`` header, if it is one."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _caller(claims: dict[str, Any]) -> Caller:
    try:
        return Caller(int(claims["sub"]), int(claims["sid"]), state().settings.driver_scope)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidToken("The token lacks a claim that this server's tokens have.") from error


def _refusal(error: Exception) -> DomainError:
    if isinstance(error, CSRFError):
        return CsrfFailed("The CSRF token is missing or wrong. Reload the page and try again.")
    if isinstance(error, pyjwt.ExpiredSignatureError):
        return TokenExpired("The token has expired. Renew it or log in again.")
    return InvalidToken("A valid token is required: Authorization: Bearer <token>.")


# --- links that set a password -------------------------------------------------------------------


def sign_reset(reset: Reset) -> str:
    """The token of a reset link, valid for `RESET_SECONDS`."""
    return _reset_signer().dumps([reset.user_id, reset.fingerprint])


def read_reset(token: str) -> Reset:
    """The permission in the token of a reset link. Raises `ValidationFailed` at ``/token``."""
    try:
        user_id, fingerprint = _reset_signer().loads(token, max_age=RESET_SECONDS)
    except BadData:
        raise passwords.invalid_link() from None
    return Reset(user_id, fingerprint)


def _reset_signer() -> URLSafeTimedSerializer:
    # The salt derives another key than that of the access tokens.
    return URLSafeTimedSerializer(
        current_app.config["JWT_SECRET_KEY"],
        salt="ordertrack password reset",
        signer_kwargs={"digest_method": hashlib.sha256},
    )
