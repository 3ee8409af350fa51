"""The console as a page for browsers: a few files, all served from here."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript"}
_HEADERS = {
    # xterm.js sets styles by elements that it makes
    "Content-Security-Policy": "default-src 'self'; img-src data:; style-src 'self' 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _serve(path: Path) -> web.Response:
    return web.Response(
        body=path.read_bytes(), content_type=_TYPES[path.suffix], charset="utf-8", headers=_HEADERS
    )


def find(wanted: str, *folders: Path) -> web.Response:
    """The first folder's file of that very name. Raises 404."""
    for folder in folders:
        for path in folder.iterdir():
            if path.name == wanted and path.suffix in _TYPES:
                return _serve(path)
    raise web.HTTPNotFound(text=f"there is no {wanted[:64]!r}\n")


async def index(request: web.Request) -> web.Response:
    return find("index.html", FOLDER)


async def file(request: web.Request) -> web.Response:
    """One of the folder's. Raises 404."""
    return find(request.match_info["name"], FOLDER)
