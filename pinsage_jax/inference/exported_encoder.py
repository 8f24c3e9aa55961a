"""The encoder of new items without edges as one function of their content, for other programs.

`content_encoder` makes the function and the tables that it reads; `write_encoder` writes it as
StableHLO, by jax.export, for any number of items and for CPUs, GPUs and TPUs:

WORKDIR/encoder/
  encoder.stablehlo   jax.export.deserialize(...).call(features, tables), and with words
                      .call(features, words, tables); see encoder.json
  tables.npz          what the items that content links lead to are compared by and send
  encoder.json        shapes of the inputs, what the features are made of, the model

The vector of such an item (new_items.py) depends on its content, through its own inputs and
through the items of the catalog whose content is most similar.  These do not change with new
items, so what they send in each layer is computed once, over the whole catalog.

  b items, F features, K words of an item (texts alone), c items that links lead to,
  C links of an item, M width of Q, d exported dimensions
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from scipy import sparse

from pinsage_jax.batching.graph_view import lists_of_some, node_inputs
from pinsage_jax.core import files
from pinsage_jax.core.version import __version__
from pinsage_jax.inference.layerwise import PassOptions, messages_of
from pinsage_jax.inference.new_item_model import NewItemModel
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.sampling.link_spaces import VectorSpace, WordSpace

FOLDER, FUNCTION, TABLES, ABOUT = "encoder", "encoder.stablehlo", "tables.npz", "encoder.json"
_PLATFORMS = ("cpu", "cuda", "tpu")
_CONTENT, _TERMS, _WEIGHTS = "content", "terms", "weights"


@dataclasses.dataclass(frozen=True, eq=False)
class ContentEncoder:
    """The function and what it takes.

    Attributes:
      encode: (features float32 [b, F], tables) -> float32 [b, d], or (features, words int32
        [b, 2K], tables) where links compare words.
      tables: arrays by name.
      features: F.
      words: 2K; 0 where links compare features.
      dimension: d.
    """

    encode: Callable[..., jax.Array]
    tables: dict[str, np.ndarray]
    features: int
    words: int
    dimension: int


def content_encoder(
    model: NewItemModel, transform: np.ndarray | None, popularity_weight: float = 1.0
) -> ContentEncoder:
    """The encoder of items without edges; its vectors are those of NewItemModel.embed.

    Args:
      transform: float32 [Z, d] of the export (VectorCodec); None: the identity.
      popularity_weight: as in weigh_popularity.
    """
    catalog, trained = model.catalog, model.trained
    config, prepared = catalog.config, catalog.prepared
    width, linked = prepared.features.shape[1], catalog.linked
    links = min(config.sampling.content_neighbors if width else 0, len(linked))
    tables, words = _tables(model, linked) if links else {}, prepared.words
    network = PinSage(config.model)
    params = {name: value for name, value in trained.params["params"].items()}
    params.pop("neighbor_embeddings", None)
    own_inputs, half = _inputs_without_content(model), prepared.features.dtype == np.float16
    pooling, layers, last = config.model.pooling, config.model.num_layers, trained.cold_start_bias

    def apply(method: str, *arguments: Any) -> jax.Array:
        return jnp.asarray(network.apply({"params": params}, *arguments, method=method))

    def embed(features: jax.Array, found: tuple[jax.Array, jax.Array] | None, held) -> jax.Array:
        scaled = features * jnp.asarray(catalog.inputs.scale)[None, :]
        rest = jnp.broadcast_to(
            own_inputs[None, width:], (features.shape[0], len(own_inputs) - width)
        )
        inputs = h = jnp.concatenate([scaled, rest], axis=1)
        for layer in range(1, layers + 1):
            pooled = jnp.zeros((features.shape[0], config.model.hidden_dim), jnp.float32)
            if found is not None:
                pooled = _pooled(pooling, held[f"messages{layer}"][found[0]], found[1])
            if layer == layers:
                return apply("finish", h, pooled, inputs)
            h = apply("combine", layer, h, pooled)
        return apply("head", inputs, inputs)

    def encode(features: jax.Array, *rest: Any) -> jax.Array:
        # Arrays of NumPy cannot be indexed by traced ones.
        held = {name: jnp.asarray(table) for name, table in rest[-1].items()}
        if half:
            # The catalog's features are rounded alike.
            features = features.astype(jnp.float16).astype(jnp.float32)
        found = None
        if links:
            cosines = _feature_cosines(features, held)
            if words is not None:
                cosines = _word_cosines(rest[0], held, int(tables[_TERMS].max(initial=0)) + 1)
            found = _links(cosines, links, pooling)
        vectors = embed(features, found, held)
        vectors = vectors.at[:, -1].add(np.float32(last))
        if transform is not None:
            vectors = jnp.matmul(vectors, jnp.asarray(transform), precision="highest")
        if popularity_weight != 1.0:
            vectors = vectors.at[:, -1].multiply(np.float32(math.sqrt(popularity_weight)))
        return vectors

    size = config.model.output_dim if transform is None else transform.shape[1]
    compared = 0 if words is None or not links else words.shape[1]
    return ContentEncoder(encode, tables, width, compared, size)


def _tables(model: NewItemModel, linked: np.ndarray) -> dict[str, np.ndarray]:
    """What links are found by, and what the items that they lead to send in each layer."""
    catalog, prepared = model.catalog, model.catalog.prepared
    config = catalog.config
    lists = lists_of_some(config, prepared, np.arange(prepared.graph.num_items))
    options = PassOptions(config.embed.embed_block, config.host_threads)
    sent = messages_of(
        config.model, model.trained.params, catalog.inputs, lists.all_rows(), options, linked
    )
    tables = {f"messages{number + 1}": messages for number, messages in enumerate(sent)}
    if prepared.words is None:
        return tables | {_CONTENT: VectorSpace(prepared.features).encode_candidates(linked)}
    terms, weights = WordSpace(prepared.words).encode_queries(linked)
    return tables | {_TERMS: terms, _WEIGHTS: weights}


def _inputs_without_content(model: NewItemModel) -> np.ndarray:
    """The input vector float32 [D] of an item without features and edges."""
    catalog, prepared = model.catalog, model.catalog.prepared
    spectral = catalog.spectral
    if spectral is not None:
        none = sparse.csr_matrix((1, prepared.graph.num_collections), dtype=np.float32)
        spectral = spectral.for_new_items(none, 0)
    features = np.zeros((1, prepared.features.shape[1]), np.float32)
    nothing = np.zeros(1, np.int32)
    inputs = node_inputs(catalog.config, features, nothing, spectral, catalog.inputs.scale)
    return inputs.gather(nothing)[0]


def _feature_cosines(features: jax.Array, tables: dict[str, jax.Array]) -> jax.Array:
    """Cosines [b, c] as VectorSpace has them; zeros where links compare words."""
    if _CONTENT not in tables:
        return jnp.zeros((features.shape[0], 1), jnp.float32)
    length = jnp.sqrt(jnp.sum(jnp.square(features), axis=1, keepdims=True))
    unit = features / jnp.maximum(length, 1e-12)
    return jnp.matmul(unit, tables[_CONTENT].T, precision="highest")


def _word_cosines(words: jax.Array, tables: dict[str, jax.Array], terms: int) -> jax.Array:
    """Cosines [b, c] as WordSpace has them, one item at a time.

    Args:
      words: int32 [b, 2K]: indices of words, then the bits of their weights.
      terms: every word of the tables is below.
    """

    def of_item(row: jax.Array) -> jax.Array:
        size = row.shape[0] // 2
        weights = jax.lax.bitcast_convert_type(row[size:], jnp.float32)
        length = jnp.sqrt(jnp.sum(jnp.square(weights)))
        weights = weights / jnp.maximum(length, 1e-12)
        # Words that no item of the tables has are left out.
        held = jnp.zeros(terms, jnp.float32).at[row[:size]].add(weights, mode="drop")
        return jnp.sum(held[tables[_TERMS]] * tables[_WEIGHTS], axis=1)

    return jax.lax.map(of_item, words)


def _links(cosines: jax.Array, size: int, pooling: str) -> tuple[jax.Array, jax.Array]:
    """Rows int32 [b, C] of the tables and pooling weights [b, C], as content_links and blend."""
    best, rows = jax.lax.top_k(cosines, size)
    positive = best > 0
    shares = jnp.where(positive, jnp.square(best), 0.0)
    if pooling != "importance":
        shares = positive.astype(jnp.float32)
    total = jnp.sum(shares, axis=1, keepdims=True)
    return rows, shares / jnp.maximum(total, 1e-12)


def _pooled(pooling: str, messages: jax.Array, weights: jax.Array) -> jax.Array:
    """Pools messages [b, C, M], which are not negative, with weights [b, C]."""
    if pooling == "max":
        return jnp.max(jnp.where(weights[:, :, None] > 0, messages, 0.0), axis=1)
    return jnp.sum(messages * weights[:, :, None], axis=1)


def exported(encoder: ContentEncoder) -> export.Exported:
    """The function for any number of items, as jax.export has it."""
    (items,) = export.symbolic_shape("items")
    arguments = [jax.ShapeDtypeStruct((items, encoder.features), jnp.float32)]
    if encoder.words:
        arguments.append(jax.ShapeDtypeStruct((items, encoder.words), jnp.int32))
    held = {
        name: jax.ShapeDtypeStruct(table.shape, table.dtype)
        for name, table in encoder.tables.items()
    }
    return export.export(jax.jit(encoder.encode), platforms=_PLATFORMS)(*arguments, held)


def write_encoder(
    workdir: str | pathlib.Path,
    model: NewItemModel,
    transform: np.ndarray | None,
    version: str,
    popularity_weight: float = 1.0,
) -> dict[str, Any]:
    """Writes WORKDIR/encoder whole; returns the contents of encoder.json.

    Args:
      version: names the vectors that these may be compared with.
    """
    encoder = content_encoder(model, transform, popularity_weight)
    made = exported(encoder)
    with files.atomic_folder(pathlib.Path(workdir) / FOLDER) as folder:
        (folder / FUNCTION).write_bytes(made.serialize())
        tables: dict[str, Any] = encoder.tables
        np.savez(folder / TABLES, **tables)
        inputs = {"features": ["items", encoder.features]}
        if encoder.words:
            inputs["words"] = ["items", encoder.words]
        about = {
            "format": 1,
            "program": f"pinsage_jax {__version__}",
            "model_version": version,
            "step": model.trained.step,
            "parameters": model.trained.digest,
            "inputs": inputs,
            "features": model.transform.describe(),
            "dimension": encoder.dimension,
            "platforms": list(made.platforms),
            "calling_convention": made.calling_convention_version,
            "jax": jax.__version__,
            "files": files.checksums(folder, [FUNCTION, TABLES]),
        }
        files.write_json(folder / ABOUT, about)
    return about
