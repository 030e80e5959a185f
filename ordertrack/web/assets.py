"""/static: our own and vendored files, compressed once, cached for good.

The address holds a digest of the whole folder, `/static/DIGEST/js/order.js`. It is in the path and
not in each name, so that modules find one another by relative imports with no build step, and every
file of one page is of one version. Without the digest a file is revalidated each time.
"""

import gzip
import mimetypes
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from flask import Blueprint, Flask, Response, current_app, request

from ordertrack import auth
from ordertrack.errors import NotFound

blueprint = Blueprint("assets", __name__)

# RFC 8246; a year is what "for good" is in HTTP.
FOR_GOOD: Final = "public, max-age=31536000, immutable"
COMPRESSED: Final = frozenset({".css", ".js", ".svg", ".txt", ".md"})


@dataclass(frozen=True, slots=True)
class Asset:
    body: bytes
    is_compressed: bool
    content_type: str
    etag: str


class Assets:
    """The folder, read once when the server starts: some hundred kilobytes."""

    def __init__(self, folder: Path) -> None:
        bodies = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self._files = {name: _asset(name, body) for name, body in bodies.items()}
        together = "".join(f"{name}\0{asset.etag}\0" for name, asset in self._files.items())
        self.digest = sha256(together.encode()).hexdigest()[:12]

    def find(self, name: str) -> Asset:
        """Raises `NotFound`."""
        try:
            return self._files[name]
        except KeyError:
            raise NotFound("There is no such file.") from None

    def url(self, name: str) -> str:
        """Where a page finds the file *name*; a name that is not there is a defect."""
        if name not in self._files:
            raise LookupError(name)
        return f"/static/{self.digest}/{name}"


def _asset(name: str, body: bytes) -> Asset:
    guessed = mimetypes.guess_type(name)[0] or "application/octet-stream"
    # The platform's table may say application/javascript, or nothing at all.
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
    """Once for each file, when it is first asked for: not at the start of every command."""
    return gzip.compress(body, 9, mtime=0)


@blueprint.get("/static/<path:name>")
@auth.public
def get(name: str) -> Response:
    assets: Assets = current_app.extensions["ordertrack_assets"]
    digest, _, rest = name.partition("/")
    is_pinned = digest == assets.digest
    asset = assets.find(rest if is_pinned else name)
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


def init_app(app: Flask, folder: Path) -> None:
    assets = Assets(folder)
    app.extensions["ordertrack_assets"] = assets
    app.jinja_env.globals["asset"] = assets.url
    app.register_blueprint(blueprint)
