"""Base of PinSage: settings, workdir and fitted attributes; its methods are in model.py."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pinsage_jax import api
from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config, all_settings
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.encoders.loading import name_of
from pinsage_jax.estimator.wording import quietly, unknown_name
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.stages import runs

if TYPE_CHECKING:
    from pinsage_jax.ranking.ranker import Ranker

# Set by arguments of fit and the methods, or by the folder.
_OF_CALLS = {
    "mode", "workdir", "query", "queries", "target", "k", "where", "boost", "one_per",
    "block_items", "allow_items", "new_items", "new_edges", "data_dir",
}  # fmt: skip


class FittedRun:
    """An object with settings, whose run is stored in a workdir."""

    def __init__(
        self,
        *,
        workdir: str | os.PathLike | None = None,
        text_encoder: Callable[[list[str]], Any] | str = "",
        image_encoder: Callable[[list[bytes]], Any] | str = "",
        **settings: Any,
    ):
        """Takes settings; nothing is read or written yet.

        Args:
          workdir: folder for everything that fitting writes; None: a temporary one, which is
            removed with this object.
          text_encoder: makes vectors float32 [n, d] of n texts, in place of TF-IDF; a callable,
            or what the flag takes (docs/encoders.md). It is not saved: see `load`.
          image_encoder: likewise of n pictures, each the bytes of a file.
          settings: settings by the names of the flags (docs/flags.md), such as epochs,
            output_dim, seed, threads or preset.

        Raises:
          UserError: there is no such setting, or its value is out of range.
        """
        self.workdir = workdir
        self._settings: dict[str, Any] = {}
        encoders = {"text_encoder": text_encoder, "image_encoder": image_encoder}
        self.set_params(**{name: value for name, value in encoders.items() if value}, **settings)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings that were given, by name, and the workdir; as scikit-learn asks for them.

        >>> import pinsage_jax
        >>> pinsage_jax.PinSage(epochs=2).get_params()
        {'workdir': None, 'epochs': 2}
        """
        return {"workdir": self.workdir, **self._settings}

    def set_params(self, **settings: Any) -> Self:
        """Changes settings and returns the object itself.

        >>> import pinsage_jax
        >>> pinsage_jax.PinSage(epochs=2).set_params(epochs=3, seed=1)
        PinSage(epochs=3, seed=1)

        Raises:
          UserError: there is no such setting, or its value is out of range.
        """
        given = dict(settings)
        folder = given.pop("workdir", self.workdir)
        known = all_settings() - _OF_CALLS
        for name in given:
            if name not in known:
                raise unknown_name(name, known, "setting")
        with quietly():
            # A folder that does not exist remembers nothing.
            api.settings(os.devnull, edges="edges", **{**self._settings, **given})
        self.workdir, self._settings = folder, {**self._settings, **given}
        return self

    @property
    def item_ids_(self) -> list[str]:
        """Ids of the N items, in the order of `embeddings_`."""
        return self._catalog[0].item_ids.ids.to_pylist()

    @property
    def embeddings_(self) -> np.ndarray:
        """Embeddings of all items, float32 [N, Z]."""
        self._fitted()
        with quietly():
            return runs.embeddings(self.config_)[1]

    @property
    def workdir_(self) -> pathlib.Path:
        """The folder that holds everything."""
        self._fitted()
        return self._folder

    @property
    def config_(self) -> Config:
        """The settings of the run."""
        self._fitted()
        return self._config

    def __repr__(self) -> str:
        shown = {k: v for k, v in sorted(self.get_params().items()) if v is not None}
        # The text of a callable may be a page long.
        values = {k: name_of(v) if callable(v) else repr(v) for k, v in shown.items()}
        return f"PinSage({', '.join(f'{name}={value}' for name, value in values.items())})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_config")

    def _fitted(self) -> None:
        if not hasattr(self, "_config"):
            raise UserError("This PinSage is not fitted yet; call fit(), or load() a folder.")

    def _new_folder(self) -> pathlib.Path:
        if self.workdir is not None:
            folder = pathlib.Path(self.workdir)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        folder = pathlib.Path(tempfile.mkdtemp(prefix="pinsage-"))
        # The folder of an earlier fit, if any, goes with its own finalizer.
        self._finalizer = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _open(self, config: Config) -> None:
        self._config, self._folder = config, pathlib.Path(config.workdir)
        self._opened: tuple[Prepared, np.ndarray] | None = None
        self._ranker: list[Ranker | None] = []

    @property
    def _catalog(self) -> tuple[Prepared, np.ndarray]:
        """The prepared catalog, and the vectors that lists are made of."""
        self._fitted()
        if self._opened is None:
            prepared = open_prepared(self._folder)
            self._opened = prepared, runs.listed_vectors(self._config, prepared)
        return self._opened

    @property
    def _lists(self) -> Ranker | None:
        """What orders related items of the catalog; None: the vectors."""
        prepared, _ = self._catalog
        if not self._ranker:
            # Opened with the first list, because its kernels take a while to load.
            from pinsage_jax.stages.search import listed_by

            exported = load_embeddings(self._folder, prepared)
            self._ranker = [listed_by(self._config, prepared, self._config.host_threads, exported)]
        return self._ranker[0]

    def _with(self, **evaluate: Any) -> Config:
        config = self.config_
        return dataclasses.replace(
            config, evaluate=dataclasses.replace(config.evaluate, **evaluate)
        )
