"""The playground: the page at `/` of the server, which asks one prompt at several depths side by side.

The files in `page/` are served as they are: HTML, CSS and JavaScript that load nothing from elsewhere and need no build
step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, JSONResponse

from depthdial.serve.playground.facts import PageFacts

PAGE = Path(__file__).parent / "page"
FACTS_PATH = "/playground/facts"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    # No script or style of another origin or inside the page, nothing framed, and nothing sent but to this server.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def _page_files() -> dict[str, Path]:
    """The files of the page, by the path that each is served at."""
    files = {f"/playground/{path.name}": path for path in sorted(PAGE.iterdir()) if path.suffix in _TYPES}
    return {"/": files.pop("/playground/index.html"), **files}


def playground_router(facts: Callable[[], PageFacts]) -> APIRouter:
    """The routes of the page: its files, and what it has to know of the model at `/playground/facts`.

    Args:
        facts: called for each request of `/playground/facts`. It raises what the server answers with while there is no
            model yet.
    """
    router = APIRouter(include_in_schema=False)
    for where, file in _page_files().items():
        router.add_api_route(where, _sender(file), methods=["GET", "HEAD"], name=file.name)

    @router.get(FACTS_PATH)
    def page_facts() -> JSONResponse:
        return JSONResponse(asdict(facts()), headers={"Cache-Control": "no-store"})

    return router


def _sender(file: Path) -> Callable[[], FileResponse]:
    def send() -> FileResponse:
        return FileResponse(file, media_type=_TYPES[file.suffix], headers=_HEADERS)

    return send
