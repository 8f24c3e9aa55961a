"""Settings of what people look at and ask: the explorer and the server."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, option


@dataclasses.dataclass(frozen=True)
class ServeConfig(Checked):
    """The explorer page of --mode=report and the HTTP service of --mode=serve."""

    explorer_limit: int = option(
        50_000,
        "Catalogs with more items get no explorer.html beside the report (it would be tens of "
        "MiB); --mode=serve shows them.",
        low=0,
    )
    serve_host: str = option(
        "127.0.0.1", "Address to listen on; the default is reached from this machine only."
    )
    serve_port: int = option(
        8080, "Port to listen on; 0: any free one, which is logged.", low=0, high=65535
    )
    serve_most: int = option(100, "Most neighbors that a request may ask for.", low=1, high=10000)
    serve_body_kib: int = option(
        256, "Longest body of a request, in KiB; longer ones are refused.", low=1, high=65536
    )
