"""GET /docs: the endpoints with forms to try them (Swagger UI), without the network.

FastAPI's own page loads Swagger UI from the internet; this one has the files that the package
fastapi-offline ships.
"""

from __future__ import annotations

import functools
import importlib.resources

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

PATH = "/docs"
# File, its type.
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
# The page starts Swagger UI by a script of its own, and its icons are data: addresses.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)


def add_api_page(app: FastAPI) -> None:
    """Adds the page and its files to an application."""

    @app.get(PATH, include_in_schema=False)
    async def page() -> HTMLResponse:
        script, style, icon = (f"{PATH}/{name}" for name in _ASSETS)
        html = get_swagger_ui_html(
            openapi_url=str(app.openapi_url),
            title=app.title,
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url=icon,
        )
        html.headers["Content-Security-Policy"] = _POLICY
        return html

    for name, kind in _ASSETS.items():
        app.add_api_route(
            f"{PATH}/{name}",
            functools.partial(_asset, name, kind),
            include_in_schema=False,
            methods=["GET"],
        )


async def _asset(name: str, kind: str) -> Response:
    content = importlib.resources.files("fastapi_offline").joinpath("static", name).read_bytes()
    return Response(content, media_type=kind, headers={"Cache-Control": "max-age=86400"})
