"""Serves /static: our own and vendored files, compressed once, cached by browsers for a year.

The URL contains a digest of the whole folder, as in `/static/DIGEST/js/order.js`. The digest is in
the path and not in each file's name, so that modules find one another by relative imports without a
build step, and all files of a page have one version. Without it a file is revalidated each time.
"""

import gzip
import mimetypes
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from flask import Flask, Response, request

from ordertrack import auth
from ordertrack.errors import NotFound

# RFC 8246. A year is the usual longest time: no release keeps a URL's digest and changes the file.
FOR_GOOD: Final = "public, max-age=31536000, immutable"
COMPRESSED: Final = frozenset({".css", ".js", ".svg", ".txt", ".md"})


@dataclass(frozen=True, slots=True)
class Asset:
    body: bytes
    is_compressed: bool
    content_type: str
    etag: str


class Assets:
    """The files of a folder, read once when the server starts: some hundred kilobytes."""

    def __init__(self, folder: Path) -> None:
        bodies = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self._files = {name: _asset(name, body) for name, body in bodies.items()}
        together = "".join(f"{name}\0{asset.etag}\0" for name, asset in self._files.items())
        self.digest = sha256(together.encode()).hexdigest()[:12]

    def url(self, name: str) -> str:
        """The URL of the file *name*. Raises `LookupError`: a page names a missing file."""
        if name not in self._files:
            raise LookupError(name)
        return f"/static/{self.digest}/{name}"

    def response(self, path: str) -> Response:
        """Answer a request for *path* below /static. Raises `NotFound`."""
        digest, _, rest = path.partition("/")
        is_pinned = digest == self.digest
        asset = self._files.get(rest if is_pinned else path)
        if asset is None:
            raise NotFound("There is no such file.")
        zipped = asset.is_compressed and request.accept_encodings["gzip"] > 0
        body = _gzipped(asset.body) if zipped else asset.body
        response = Response(body, content_type=asset.content_type)
        response.headers["Cache-Control"] = FOR_GOOD if is_pinned else "no-cache"
        response.headers["Vary"] = "Accept-Encoding"
        if zipped:
            response.headers["Content-Encoding"] = "gzip"
        response.set_etag(asset.etag + ("-gz" if zipped else ""))
        response.make_conditional(request)
        return response


def _asset(name: str, body: bytes) -> Asset:
    guessed = mimetypes.guess_type(name)[0] or "application/octet-stream"
    # For .js the platform's table may contain application/javascript, or nothing.
    kind = "text/javascript" if name.endswith(".js") else guessed
    is_text = kind.startswith("text/") or kind == "image/svg+xml"
    return Asset(
        body,
        Path(name).suffix in COMPRESSED,
        f"{kind}; charset=utf-8" if is_text else kind,
        sha256(body).hexdigest()[:20],
    )


@cache
def _gzipped(body: bytes) -> bytes:
    """*body* compressed, once per file, at the first request: a command line compresses nothing."""
    return gzip.compress(body, 9, mtime=0)


def init_app(app: Flask, folder: Path) -> None:
    """Serve the files of *folder*, and give templates the function ``asset(name)``, their URLs."""
    assets = Assets(folder)
    app.jinja_env.globals["asset"] = assets.url

    @app.get("/static/<path:name>", endpoint="assets")
    @auth.public
    def get(name: str) -> Response:
        return assets.response(name)
