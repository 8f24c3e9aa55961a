"""PinSage as a Python object: fitted on tables in memory, queried for neighbors and more.

It runs the same stages as the program, on the same kind of workdir: a model that is fitted here
can be used from the command line, and vice versa.

  N items, Z embedding dimensions, n items listed
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pinsage_jax import api
from pinsage_jax.config.settings import code_settings
from pinsage_jax.core import files, workdir
from pinsage_jax.core.costs import commanded
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.pairs_table import read_pairs
from pinsage_jax.data.tables import open_table
from pinsage_jax.estimator import frames, inputs, lists
from pinsage_jax.estimator.base import FittedRun
from pinsage_jax.estimator.wording import quietly
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.retrieval import neighbors as related
from pinsage_jax.stages import runs
from pinsage_jax.stages.search import embed_new, listed_by, with_new_items


class PinSage(FittedRun):
    """Item embeddings from items and the collections that hold them.

    >>> import pinsage_jax
    >>> model = pinsage_jax.PinSage(epochs=1, num_walks=20, hidden_dim=16, output_dim=8)
    >>> model
    PinSage(epochs=1, hidden_dim=16, num_walks=20, output_dim=8)
    >>> pinsage_jax.PinSage(epoch=2)
    Traceback (most recent call last):
    pinsage_jax.core.errors.UserError: There is no setting epoch; did you mean epochs?

    The examples of the methods ask a `model` that was fitted on a small shop.

    Attributes of a fitted model:
      workdir_: the folder that holds everything (pathlib.Path).
      config_: the settings of the run.
      item_ids_: ids of the N items, in the order of embeddings_ (list of str).
      embeddings_: float32 [N, Z]; rank by inner product.
    """

    def fit(
        self,
        edges: Any,
        items: Any = None,
        *,
        item: str = "item_id",
        collection: str = "collection_id",
        weight: str = "",
        time: str = "",
        title: str | None = None,
        text: Sequence[str] | str = "auto",
        categorical: Sequence[str] | str = "auto",
        numeric: Sequence[str] | str = "auto",
        dense: Sequence[str] | str = "auto",
        image: Sequence[str] | str = (),
        train_pairs: Any = None,
        eval_pairs: Any = None,
    ) -> PinSage:
        """Trains on a graph of items and collections, and embeds all items.

        >>> import pinsage_jax
        >>> baskets = [["tea", "milk", "sugar"], ["tea", "lemon"], ["milk", "coffee", "sugar"]] * 5
        >>> small = dict(epochs=1, hidden_dim=8, layer_dim=8, output_dim=8, spectral_dim=0,
        ...     batch_size=8, random_negatives=8, pairs_per_epoch=16, num_walks=10, hard_walks=10)
        >>> model = pinsage_jax.PinSage(**small).fit(baskets)
        >>> model.item_ids_
        ['coffee', 'lemon', 'milk', 'sugar', 'tea']
        >>> model.embeddings_.shape
        (5, 8)

        Args:
          edges: one row per item in a collection: a pandas, Polars or Arrow table (or any with
            the Arrow PyCapsule interface), a Dataset of Hugging Face, a dictionary of columns,
            a path; a SciPy sparse
            matrix of collections by items, whose values are weights; or the items of each
            collection, as a list of lists or a dictionary.
          items: one row per item with its features; may hold items without edges. A table or
            a path. Every column but vectors can be used in `where` later.
          item, collection: columns of edges; `item` is the column of ids of items, too, unless
            that has item_id only.
          weight, time: columns of edges with positive weights and with times; "": none.
          title: column of items shown beside ids; None: 'title' or 'name' if there is one.
          text, categorical, numeric, dense: columns of items to use as such; "auto" chooses
            by their content, an empty list uses none.
          image: columns of items with the bytes of pictures, for `image_encoder`.
          train_pairs, eval_pairs: tables of pairs query_id, target_id (and kind).

        Returns:
          The object itself.

        Raises:
          UserError: a table or setting has a mistake.
        """
        folder = self._new_folder()
        with quietly():
            columns = inputs.Columns(
                item, collection, weight, time, title, text, categorical, numeric, dense, image
            )
            tables = {
                "edges": edges, "items": items, "train_pairs": train_pairs,
                "eval_pairs": eval_pairs,
            }  # fmt: skip
            named = inputs.write_inputs(folder, tables, columns)
            config = api.settings(folder, **{**self._settings, **named})
            # Training loads JAX.
            from pinsage_jax.stages.embed import embed
            from pinsage_jax.stages.prepare import load_graph
            from pinsage_jax.stages.search import rank_if_worth_it
            from pinsage_jax.stages.train import train

            with workdir.locked(folder), commanded(f"pinsage_jax.{self!r}.fit(...)"):
                load_graph(config)
                train(config)
                embed(config)
                rank_if_worth_it(config)
            remembered = {
                name: inputs.plain(value)
                for name, value in self._settings.items()
                if name not in code_settings()
            }
            files.write_json(folder / inputs.SETTINGS, remembered)
        self._open(config)
        return self

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        text_encoder: Callable[[list[str]], Any] | str = "",
        image_encoder: Callable[[list[bytes]], Any] | str = "",
    ) -> PinSage:
        """A model from a folder: one that `save` wrote, or the workdir of a run.

        Args:
          text_encoder, image_encoder: those that the model was fitted with, if new items
            are to be embedded; what the folder says of them is never imported or called.

        Raises:
          UserError: the folder holds no finished run.
        """
        with quietly():
            saved = pathlib.Path(path) / inputs.SETTINGS
            settings = files.read_json(saved) if saved.exists() else {}
            # Whatever the folder holds, it names no code.
            settings = {k: v for k, v in settings.items() if k not in code_settings()}
            encoders: dict[str, Any] = {
                "text_encoder": text_encoder, "image_encoder": image_encoder,
            }  # fmt: skip
            model = cls(workdir=path, **encoders, **settings)
            config = api.settings(path, **model._settings)
            model._open(config)
            _ = model._catalog
        return model

    def save(self, path: str | os.PathLike) -> None:
        """Copies the whole model to a new folder, for `load` or the command line.

        Raises:
          UserError: the model is not fitted, or the folder exists.
        """
        target = pathlib.Path(path)
        source, config = self.workdir_, self.config_
        if target.exists():
            raise UserError(f"{target} exists already; choose another folder, or remove it.")
        with files.atomic_folder(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
            (temporary / workdir.LOCK).unlink(missing_ok=True)
            data = dataclasses.replace(config.data, **inputs.moved(source, target))
            runs.remember(dataclasses.replace(config, data=data), temporary)

    def similar_items(
        self,
        items: Any,
        n: int = 10,
        *,
        where: str = "",
        boost: str = "",
        one_per: str = "",
        block: Any = (),
        allow: Any = None,
        columns: Sequence[str] = (),
    ) -> pa.Table:
        """The items that are most similar to each of some items.

        >>> model.similar_items("item-3", n=2).column_names
        ['item', 'score', 'title']
        >>> found = model.similar_items(["item-3", "item-7"], n=2, where="price < 5",
        ...     columns=["price"])
        >>> found.column_names, found.num_rows, max(found["price"].to_pylist()) < 5
        (['query', 'item', 'score', 'title', 'price'], 4, True)
        >>> model.similar_items("item-03")
        Traceback (most recent call last):
        pinsage_jax.core.errors.UserError: There is no item item-03. Did you mean item-3 or ...?

        Args:
          items: an id, several ids, or a table of new items with the columns of those that
            were fitted; new items may be listed, too.
          n: most items listed for each.
          where: expression over columns that must hold for an item to be listed, such as
            "in_stock and price < 2 * query.price" (docs/export_and_index.md).
          boost: expression above 0 that scores are multiplied by.
          one_per: column of whose values each is listed once.
          block, allow: ids that are not listed, and the ids that alone may be.
          columns: columns of items to show beside each.

        Returns:
          A table, best first: query (if several are asked for), item, score, title (if there
          is one) and `columns`. `.to_pandas()` and `polars.from_arrow()` convert it.

        Raises:
          UserError: an id, a column or an expression is wrong.
        """
        listing = lists.listing_of(where, boost, one_per, block, allow)
        with quietly():
            prepared, vectors = self._catalog
            one = isinstance(items, str | int | np.integer)
            if frames.is_frame(items):
                known, table = len(vectors), frames.in_memory(items, "items")
                exported = load_embeddings(self.workdir_, prepared)
                prepared, exported = with_new_items(self._config, prepared, exported, table)
                search = listed_by(self._config, prepared, self._config.host_threads, exported)
                vectors = runs.weighted(self._config, exported)
                rows = np.arange(known, len(vectors))
            else:
                rows, search = related.rows_of(frames.ids_of(items, "items"), prepared), self._lists
            config = self._with(k=n)
            found = related.listed_for(config, prepared, vectors, rows, listing, search)
            return lists.listed(prepared, rows, *found, columns, with_query=not one)

    def embed(self, items: Any, edges: Any = None) -> np.ndarray:
        """Embeds items that were not fitted, without training.

        >>> new = {"item_id": ["fresh"], "title": ["a new thing"], "price": [3.5], "kind": ["a"]}
        >>> model.embed(new).shape
        (1, 8)

        Args:
          items: a table with the columns of the items that were fitted.
          edges: a table of the edges of new items, if there are any.

        Returns:
          float32 [n, Z], in the order of the rows; compare with `embeddings_`.

        Raises:
          UserError: a column is missing, or an item is known already.
        """
        with quietly():
            tables = [frames.in_memory(items, "items")]
            if edges is not None:
                tables.append(frames.in_memory(edges, "edges"))
            return embed_new(self._config, self._catalog[0], *tables)[1]

    def recommend(
        self,
        history: Any,
        n: int = 10,
        *,
        where: str = "",
        boost: str = "",
        one_per: str = "",
        block: Any = (),
        allow: Any = None,
        columns: Sequence[str] = (),
    ) -> pa.Table:
        """The items that fit a history, without its own items.

        >>> found = model.recommend(["item-1", "item-2"], n=3)
        >>> found.num_rows, "item-1" in found["item"].to_pylist()
        (3, False)

        Args:
          history: ids of items; those that are not in the catalog are an error.
          n, where, boost, one_per, block, allow, columns: as in `similar_items`, except that
            a history has no query.COLUMN.

        Returns:
          A table, best first: item, score, title (if there is one) and `columns`.

        Raises:
          UserError: an id, a column or an expression is wrong.
        """
        # Scoring loads Numba and SciPy.
        from pinsage_jax.recommend.recommend import items_for

        listing = lists.listing_of(where, boost, one_per, block, allow)
        with quietly():
            prepared, vectors = self._catalog
            rows = np.unique(related.rows_of(frames.ids_of(history, "history"), prepared))
            if len(rows) == 0:
                raise UserError("history holds no item.")
            ids, scores = items_for(self._with(), prepared, vectors, rows, n, listing)
            return lists.listed(prepared, rows[:1], ids, scores, columns, with_query=False)

    def evaluate(self, pairs: Any = None) -> dict[str, Any]:
        """Ranks the target of every pair in the whole catalog, by this model and baselines.

        >>> pairs = {"query_id": ["item-1", "item-2"], "target_id": ["item-2", "item-5"]}
        >>> found = model.evaluate(pairs)
        >>> found["pairs"], sorted(found["methods"])[-4:]
        (2, ['pinsage', 'popularity', 'steered', 'walk'])

        Args:
          pairs: a table query_id, target_id (and kind), or a path; None: the eval_pairs of
            `fit`, or else the validation pairs.

        Returns:
          What eval.json holds (docs/reading_the_report.md): "methods" by name, with
          metrics and their 95% intervals. With `pairs` nothing is written.

        Raises:
          UserError: a column is missing.
        """
        from pinsage_jax.evaluation.evaluate import evaluate as evaluate_pairs
        from pinsage_jax.stages.evaluate import evaluate

        with quietly():
            config = self._with()
            if pairs is None:
                return evaluate(config)
            prepared, _ = self._catalog
            if isinstance(pairs, str | os.PathLike):
                table = open_table(pathlib.Path(pairs), "pairs", config.data)
            else:
                table = frames.in_memory(pairs, "pairs")
            degree = prepared.graph.degree()
            found = read_pairs(table, prepared.item_ids, degree)
            prepared = dataclasses.replace(prepared, eval_pairs=found.pairs, eval_kinds=found.kinds)
            vectors = load_embeddings(self.workdir_, prepared)
            with tempfile.TemporaryDirectory(prefix="pinsage-") as scratch:
                return evaluate_pairs(
                    dataclasses.replace(config, workdir=scratch), prepared, vectors,
                    runs.validation_split_of(config, prepared),
                    has_popularity=runs.has_popularity(config),
                )  # fmt: skip

    def report(self) -> pathlib.Path:
        """Writes report.html and the explorer into the workdir; returns the report's path.

        Raises:
          UserError: matplotlib is not installed (pip install 'pinsage-jax[report]').
        """
        from pinsage_jax.stages.evaluate import evaluate, report, saved_evaluation

        with quietly():
            if saved_evaluation(self.config_) is None:
                evaluate(self.config_)
            return report(self.config_)
