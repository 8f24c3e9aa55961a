"""The HTTP service: routes, refusals and limits around a Service (FastAPI).

GET  /neighbors?item=ID&k=10      nearest items of an item
POST /neighbors/history           {"items": [ID, ...], "k": 10}: for what a user holds
POST /neighbors/new               {"items": [{COLUMN: VALUE, ...}], "edges": [...], "k": 10}:
                                  of items that the catalog does not hold
GET  /health, /metrics            what is served; Prometheus text
GET  /                            the explorer

Every refusal is {"error": SENTENCE} with a status from 400 to 499.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pinsage_jax.core.version import __version__
from pinsage_jax.serving import measures
from pinsage_jax.serving.measures import Measures
from pinsage_jax.serving.middleware import BodyLimit, Measured
from pinsage_jax.serving.service import MOST_ITEMS, RequestError, Service

# Names that a browser may know this machine by.  A page elsewhere whose own name is made to
# lead here (DNS rebinding) sends that name.
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
_DEFAULT_K = 10


class History(BaseModel):
    """What a user holds."""

    model_config = ConfigDict(extra="forbid")
    items: Annotated[list[str], Field(min_length=1, max_length=MOST_ITEMS)]
    k: int = _DEFAULT_K


class NewItems(BaseModel):
    """Rows as those of --new_items and --new_edges."""

    model_config = ConfigDict(extra="forbid")
    items: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_ITEMS)]
    edges: list[dict[str, Any]] = []
    k: int = _DEFAULT_K


def make_app(service: Service, threads: int) -> FastAPI:
    """The application.

    Args:
      threads: requests that are worked on at once; others wait.
    """
    settings, about = service.config.serve, service.health()
    counted = Measures(
        {
            "pinsage_items": ("Items in the catalog.", about["items"]),
            "pinsage_dimension": ("Numbers of an embedding.", about["dimension"]),
        }
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = threads
        yield

    # The documentation pages would fetch scripts from elsewhere.
    app = FastAPI(
        title="pinsage_jax",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    # The last is the outermost.
    if settings.serve_host in LOCAL_NAMES:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL_NAMES, "[::1]"])
    app.add_middleware(BodyLimit, most=settings.serve_body_kib << 10)
    app.add_middleware(Measured, measures=counted)
    _add_refusals(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return about

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(counted.text(), media_type=measures.CONTENT_TYPE)

    @app.get("/neighbors")
    def neighbors(item: str, k: int = _DEFAULT_K) -> JSONResponse:
        return JSONResponse(service.neighbors(item, k))

    @app.post("/neighbors/history")
    def history(asked: History) -> JSONResponse:
        return JSONResponse(service.for_history(asked.items, asked.k))

    # One at a time, and beside the others: embedding takes longer than a search.
    embedding = anyio.CapacityLimiter(1)

    @app.post("/neighbors/new")
    async def new(asked: NewItems) -> JSONResponse:
        return JSONResponse(
            await anyio.to_thread.run_sync(
                service.for_new, asked.items, asked.edges, asked.k, limiter=embedding
            )
        )

    _add_explorer(app, service)
    return app


def _add_explorer(app: FastAPI, service: Service) -> None:
    """The explorer's page and what it asks for."""

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(service.page(), headers={"X-Frame-Options": "DENY"})

    @app.get("/explorer/search", include_in_schema=False)
    def search(words: str, most: int = 20) -> JSONResponse:
        return JSONResponse(service.found(words, max(most, 0)))

    @app.get("/explorer/item", include_in_schema=False)
    def item(id: str) -> JSONResponse:
        return JSONResponse(service.item(id))

    @app.get("/explorer/any", include_in_schema=False)
    def any_item() -> JSONResponse:
        return JSONResponse(service.any_item())

    @app.get("/explorer/map", include_in_schema=False)
    def places() -> JSONResponse:
        return JSONResponse(service.map)


def _add_refusals(app: FastAPI) -> None:
    """One sentence for whatever cannot be answered."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse({"error": "The body is not valid JSON."}, 400)
        # ("body", "items", 3): what precedes says where it was looked for.
        place = ".".join(str(part) for part in first["loc"][1:]) or "The body"
        said = first["msg"]
        return JSONResponse({"error": f"{place}: {said[:1].lower()}{said[1:]}."}, 400)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        sentence = f"{error.detail}."
        if error.status_code == 404:
            sentence = "There is nothing at this path; GET /health tells whether the service runs."
        elif error.status_code == 405:
            sentence = f"{request.method} is not what this path answers to."
        return JSONResponse({"error": sentence}, error.status_code, error.headers)
