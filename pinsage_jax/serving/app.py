"""The HTTP application: routes, errors and limits around a Service (FastAPI).

GET  /neighbors?item=ID&k=10      nearest items of an item
POST /neighbors                   {"items": [ID, ...], "k": 10}: nearest items of each of several
POST /neighbors/history           {"items": [ID, ...], "k": 10}: items for a user's history
POST /neighbors/new               {"items": [{COLUMN: VALUE, ...}], "edges": [...], "k": 10}:
                                  nearest items of items that are not in the catalog
GET  /health                      size of the catalog, step of the model, kind of search
GET  /metrics                     counts and latencies, in the text format of Prometheus
GET  /                            the explorer

Every request takes rules: where, boost, one_per, block_items and allow_items, as the flags of
those names; the two lists are lists of ids (in a GET, parameters that may be repeated).

Every error response is {"error": SENTENCE} with a status from 400 to 499.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pinsage_jax.core.version import __version__
from pinsage_jax.listing.rules import Listing
from pinsage_jax.serving import prometheus
from pinsage_jax.serving.middleware import BodyLimit, RequestMetrics
from pinsage_jax.serving.prometheus import ServerMetrics
from pinsage_jax.serving.service import MAX_REQUEST_ITEMS, RequestError, Service, listing_of_request

# Host names of a server on the loopback interface.  A web page that reaches it by DNS
# rebinding sends its own host name, which is refused.
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
_DEFAULT_K = 10


class Ruled(BaseModel):
    """Which items may be listed."""

    model_config = ConfigDict(extra="forbid")
    where: str = ""
    boost: str = ""
    one_per: str = ""
    block_items: list[str] = []
    allow_items: list[str] | None = None

    @property
    def listing(self) -> Listing:
        """The rules, as the service takes them."""
        return listing_of_request(
            self.where, self.boost, self.one_per, self.block_items, self.allow_items
        )


class Items(Ruled):
    """Items whose neighbors are asked for."""

    items: Annotated[list[str], Field(min_length=1, max_length=MAX_REQUEST_ITEMS)]
    k: int = _DEFAULT_K


class History(Ruled):
    """The items of a user's history."""

    items: Annotated[list[str], Field(min_length=1, max_length=MAX_REQUEST_ITEMS)]
    k: int = _DEFAULT_K


class NewItems(Ruled):
    """Rows with the columns of --new_items and --new_edges."""

    items: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_REQUEST_ITEMS)]
    edges: list[dict[str, Any]] = []
    k: int = _DEFAULT_K


def make_app(service: Service, threads: int) -> FastAPI:
    """Builds the application.

    Args:
      service: answers the requests.
      threads: number of requests that are processed in parallel; further ones wait.
    """
    settings, status = service.config.serve, service.health()
    server_metrics = ServerMetrics(
        {
            "pinsage_items": ("Number of items in the catalog.", status["items"]),
            "pinsage_dimension": ("Dimension of the embeddings.", status["dimension"]),
        }
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = threads
        yield

    # FastAPI's documentation pages would load scripts from the internet.
    app = FastAPI(
        title="pinsage_jax",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    # The middleware that is added last is the outermost.
    if settings.serve_host in LOCAL_NAMES:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL_NAMES, "[::1]"])
    app.add_middleware(BodyLimit, max_bytes=settings.serve_body_kib << 10)
    app.add_middleware(RequestMetrics, metrics=server_metrics)
    _add_error_handlers(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return status

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(server_metrics.text(), media_type=prometheus.CONTENT_TYPE)

    @app.get("/neighbors")
    def neighbors(
        item: str,
        k: int = _DEFAULT_K,
        where: str = "",
        boost: str = "",
        one_per: str = "",
        block_items: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies it.
        allow_items: Annotated[list[str] | None, Query()] = None,
    ) -> JSONResponse:
        listing = listing_of_request(where, boost, one_per, block_items, allow_items)
        return JSONResponse(service.neighbors(item, k, listing))

    @app.post("/neighbors")
    def neighbors_of_items(body: Items) -> JSONResponse:
        return JSONResponse(service.neighbors_of_items(body.items, body.k, body.listing))

    @app.post("/neighbors/history")
    def history(body: History) -> JSONResponse:
        return JSONResponse(service.recommend(body.items, body.k, body.listing))

    # Embedding takes longer than a search, so it has one thread of its own.
    embedding = anyio.CapacityLimiter(1)

    @app.post("/neighbors/new")
    async def new(body: NewItems) -> JSONResponse:
        return JSONResponse(
            await anyio.to_thread.run_sync(
                service.neighbors_of_new_items,
                body.items,
                body.edges,
                body.k,
                body.listing,
                limiter=embedding,
            )
        )

    _add_explorer(app, service)
    return app


def _add_explorer(app: FastAPI, service: Service) -> None:
    """Adds the explorer's page and the routes that its script requests."""

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(service.page(), headers={"X-Frame-Options": "DENY"})

    @app.get("/explorer/search", include_in_schema=False)
    def search(query: str, limit: int = 20) -> JSONResponse:
        return JSONResponse(service.search_catalog(query, max(limit, 0)))

    @app.get("/explorer/item", include_in_schema=False)
    def item(id: str) -> JSONResponse:
        return JSONResponse(service.item(id))

    @app.get("/explorer/random", include_in_schema=False)
    def random_item() -> JSONResponse:
        return JSONResponse(service.random_item())

    @app.get("/explorer/map", include_in_schema=False)
    def map_data() -> JSONResponse:
        return JSONResponse(service.map_data)


def _add_error_handlers(app: FastAPI) -> None:
    """Answers every error with one sentence."""

    @app.exception_handler(RequestError)
    async def request_error(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse({"error": "The body is not valid JSON."}, 400)
        # The location is a tuple such as ("body", "items", 3); its first part is not needed.
        field = ".".join(str(part) for part in first["loc"][1:]) or "The body"
        message = first["msg"]
        return JSONResponse({"error": f"{field}: {message[:1].lower()}{message[1:]}."}, 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        sentence = f"{error.detail}."
        if error.status_code == 404:
            sentence = "This path does not exist; GET /health reports whether the service runs."
        elif error.status_code == 405:
            sentence = f"This path does not support the method {request.method}."
        return JSONResponse({"error": sentence}, error.status_code, error.headers)
