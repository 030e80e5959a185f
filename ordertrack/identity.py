"""Who speaks: header, cookie or handshake → Principal. No other module reads or makes tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from http.cookies import CookieError, SimpleCookie
from typing import Any, TypeVar

import jwt as pyjwt
from flask import Flask, current_app, g, request
from flask_jwt_extended import (
    create_access_token,
    create_refresh_token,
    decode_token,
    get_jwt,
    verify_jwt_in_request,
)
from flask_jwt_extended.exceptions import CSRFError, JWTExtendedException

from ordertrack.config import Settings
from ordertrack.errors import CsrfFailed, DomainError, InvalidToken, TokenExpired
from ordertrack.policy import Principal
from ordertrack.services.accounts import SignIn

ISSUER = AUDIENCE = "ordertrack"


@dataclass(frozen=True, slots=True)
class Tokens:
    access: str
    refresh: str
    expires_in: int  # seconds that the access token is good for


@dataclass(frozen=True, slots=True)
class Credential:
    """A verified access token: who, and until when (Unix time, seconds)."""

    principal: Principal
    expires_at: float


def jwt_options(settings: Settings) -> dict[str, Any]:
    """Flask-JWT-Extended's configuration, nothing left to its defaults that matters."""
    return {
        "JWT_SECRET_KEY": settings.jwt_secret,
        "JWT_ALGORITHM": "HS256",
        "JWT_DECODE_ALGORITHMS": ["HS256"],
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
    }


def issue(sign_in: SignIn) -> Tokens:
    """Sign the tokens of a session."""
    claims = {"sid": str(sign_in.principal.session_id)}
    subject = str(sign_in.principal.user_id)
    lifetime: timedelta = current_app.config["JWT_ACCESS_TOKEN_EXPIRES"]
    return Tokens(
        access=create_access_token(subject, additional_claims=claims),
        refresh=create_refresh_token(subject, additional_claims=claims),
        expires_in=int(lifetime.total_seconds()),
    )


View = TypeVar("View", bound=Callable[..., Any])


def public(view: View) -> View:
    """Mark a view that anybody may call. Without the mark a request needs an access token."""
    view.__dict__["is_public"] = True
    return view


def takes_refresh_token(view: View) -> View:
    """Mark a view that is called with the refresh token instead of the access token."""
    view.__dict__["takes_refresh_token"] = True
    return view


def principal() -> Principal:
    """The caller of the current request, verified before the view ran."""
    caller: Principal = g.principal
    return caller


def init_app(app: Flask) -> None:
    """Closed by default: one check before every request, opened per view by a mark."""

    @app.before_request
    def authenticate() -> None:
        view = app.view_functions.get(request.endpoint or "")
        if view is None or "is_public" in view.__dict__:
            return
        g.principal = from_request(refresh="takes_refresh_token" in view.__dict__)


def from_request(*, refresh: bool = False) -> Principal:
    """Verify the current request's token (header, or cookie with its CSRF token on writes).

    Raises `InvalidToken`, `TokenExpired`, `CsrfFailed`.
    """
    try:
        verify_jwt_in_request(refresh=refresh)
    except (JWTExtendedException, pyjwt.PyJWTError) as error:
        raise _refusal(error) from error
    return _principal(get_jwt())


def from_token(token: Any) -> Credential:
    """Verify an access token that came by other ways than a request: a socket's handshake.

    Needs an application context. Raises `InvalidToken`, `TokenExpired`.
    """
    if not isinstance(token, str) or not token:
        raise InvalidToken("An access token is required.")
    try:
        claims = decode_token(token)
    except (JWTExtendedException, pyjwt.PyJWTError) as error:
        raise _refusal(error) from error
    if claims.get("type") != "access":
        raise InvalidToken("This is not an access token.")
    return Credential(_principal(claims), float(claims["exp"]))


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


def _principal(claims: dict[str, Any]) -> Principal:
    try:
        return Principal(int(claims["sub"]), int(claims["sid"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidToken("The token lacks what this server puts into its tokens.") from error


def _refusal(error: Exception) -> DomainError:
    if isinstance(error, CSRFError):
        return CsrfFailed("The CSRF token is missing or wrong. Reload the page and try again.")
    if isinstance(error, pyjwt.ExpiredSignatureError):
        return TokenExpired("The token has expired. Renew it or log in again.")
    return InvalidToken("A valid token is required: Authorization: Bearer <token>.")
