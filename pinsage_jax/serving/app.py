"""The HTTP application: routes, errors and limits around a Service (FastAPI).

GET  /neighbors?item=ID&k=10      nearest items of an item
POST /neighbors                   {"items": [ID, ...], "k": 10}: nearest items of each of several
POST /neighbors/history           {"items": [ID, ...], "k": 10}: items for a user's history
POST /neighbors/new               {"items": [{COLUMN: VALUE, ...}], "edges": [...], "k": 10}:
                                  nearest items of items that are not in the catalog
GET  /health                      size of the catalog, step of the model, kind of search
GET  /metrics                     counts and latencies, in the text format of Prometheus
GET  /docs, /openapi.json         these endpoints, to try and for programs (api_page.py, schema.py)
GET  /                            the explorer

Every request for lists takes rules: where, boost, one_per, block_items and allow_items, as the
flags of those names, and columns, those of --items to return; lists are lists of ids or names
(in a GET, parameters that may be repeated).

Every error response is {"error": SENTENCE} with a status from 400 on.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from pinsage_jax.core.version import __version__
from pinsage_jax.serving import api_page, prometheus, schema
from pinsage_jax.serving.current import Current
from pinsage_jax.serving.middleware import BodyLimit, HostNames, RequestLimit, RequestMetrics
from pinsage_jax.serving.prometheus import ServerMetrics
from pinsage_jax.serving.service import RequestError, Service

# Host names of a server on the loopback interface.
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
# Requests in progress, beyond which the answer is 503.
MOST_REQUESTS = 256

_T = TypeVar("_T")


def make_app(
    served: Service | Current, threads: int, metrics: ServerMetrics | None = None
) -> FastAPI:
    """Builds the application.

    Args:
      served: answers the requests; a Current may replace its service at any time.
      threads: number of requests that are processed in parallel; further ones wait.
      metrics: where requests are counted; None: in numbers of this process.
    """
    current = Current(served) if isinstance(served, Service) else served
    settings = current.service.config.serve

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = threads
        yield

    app = FastAPI(
        title="pinsage_jax",
        version=__version__,
        description="Neighbors of items, of histories and of new items. Every error is one "
        "sentence under the key error.",
        # The page of api_page.py is in their place.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={
            "4XX": {"model": schema.Error, "description": "The request cannot be answered."}
        },
        lifespan=lifespan,
    )
    _add_lists(app, current)
    _add_explorer(app, current)
    api_page.add_api_page(app)

    @app.get("/health", summary="What is served", response_model=schema.Health)
    async def health() -> JSONResponse:
        return JSONResponse(current.health())

    @app.get("/metrics", summary="Counts and times for Prometheus")
    async def read_metrics() -> PlainTextResponse:
        status = current.service.health()
        gauges = {
            "pinsage_items": ("Number of items in the catalog.", status["items"]),
            "pinsage_dimension": ("Dimension of the embeddings.", status["dimension"]),
        }
        return PlainTextResponse(counted.text(gauges), media_type=prometheus.CONTENT_TYPE)

    paths = [route.path for route in app.routes if isinstance(route, APIRoute)]
    counted = metrics or ServerMetrics()
    counted.name_paths(paths)
    # The middleware that is added last is the outermost.
    if settings.serve_host in LOCAL_NAMES:
        app.add_middleware(HostNames, names=LOCAL_NAMES)
    app.add_middleware(BodyLimit, max_bytes=settings.serve_body_kib << 10)
    app.add_middleware(RequestLimit, most=MOST_REQUESTS)
    app.add_middleware(RequestMetrics, metrics=counted)
    _add_error_handlers(app)
    return app


def _add_lists(app: FastAPI, current: Current) -> None:
    """Adds the routes that answer with neighbors."""

    @app.get(
        "/neighbors", summary="Nearest items of an item", response_model=schema.NeighborsOfItem
    )
    def neighbors(asked: Annotated[schema.Item, Query()]) -> JSONResponse:
        found = current.service.neighbors(asked.item, asked.k, asked.listing, asked.columns)
        return JSONResponse(found)

    @app.post(
        "/neighbors",
        summary="Nearest items of each of several",
        response_model=schema.NeighborsOfItems,
    )
    def neighbors_of_items(body: schema.Items) -> JSONResponse:
        service = current.service
        return JSONResponse(
            service.neighbors_of_items(body.items, body.k, body.listing, body.columns)
        )

    @app.post(
        "/neighbors/history", summary="Items for a history", response_model=schema.Recommended
    )
    def history(body: schema.History) -> JSONResponse:
        service = current.service
        return JSONResponse(service.recommend(body.items, body.k, body.listing, body.columns))

    # Embedding takes longer than a search, so it has one thread of its own.
    embedding = anyio.CapacityLimiter(1)

    @app.post(
        "/neighbors/new",
        summary="Nearest items of items that the catalog does not hold",
        response_model=schema.NeighborsOfNewItems,
    )
    async def new(body: schema.NewItems) -> JSONResponse:
        def answer() -> dict[str, Any]:
            return current.service.neighbors_of_new_items(
                body.items, body.edges, body.k, body.listing, body.columns
            )

        return JSONResponse(await anyio.to_thread.run_sync(answer, limiter=embedding))


def _add_explorer(app: FastAPI, current: Current) -> None:
    """Adds the explorer's page and the routes that its script requests."""

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        html = current.service.explorer.page()
        return HTMLResponse(html, headers={"X-Frame-Options": "DENY"})

    @app.get("/explorer/search", include_in_schema=False)
    def search(query: str, limit: int = 20) -> JSONResponse:
        return JSONResponse(current.service.explorer.search(query, max(limit, 0)))

    @app.get("/explorer/item", include_in_schema=False)
    def item(id: str) -> JSONResponse:
        return JSONResponse(_found(current.service.explorer.item(id), "item"))

    @app.get("/explorer/collection", include_in_schema=False)
    def collection(id: str, limit: int = 200) -> JSONResponse:
        return JSONResponse(_found(current.service.explorer.collection(id, limit), "collection"))

    @app.get("/explorer/review", include_in_schema=False)
    def review() -> JSONResponse:
        return JSONResponse(current.service.explorer.review())

    @app.get("/explorer/random", include_in_schema=False)
    def random_item() -> JSONResponse:
        return JSONResponse(current.service.explorer.random_item())

    @app.get("/explorer/map", include_in_schema=False)
    def map_data() -> JSONResponse:
        return JSONResponse(current.service.explorer.map())

    @app.get("/explorer/image", include_in_schema=False)
    def image(id: str) -> Response:
        data = _found(current.service.explorer.thumbnail(id), "picture")
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(data, media_type="image/webp", headers=headers)


def _found(value: _T | None, what: str) -> _T:
    """The value, or RequestError if there is none."""
    if value is None:
        raise RequestError(404, f"The {what} is not in the catalog.")
    return value


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
            sentence = "This path does not exist; GET /docs lists those that do."
        elif error.status_code == 405:
            sentence = f"This path does not support the method {request.method}."
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    # The error goes on to uvicorn, which logs it with its traceback.
    @app.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> JSONResponse:
        sentence = "The server made a mistake with this request; its log has the details."
        return JSONResponse({"error": sentence}, 500)
