"""Opens an index of WORKDIR/index, which index_table.py builds and measures.

This module loads neither JAX nor the measuring code, so that a search starts quickly.
"""

from __future__ import annotations

import pathlib

import numpy as np

from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.export import writer
from pinsage_jax.retrieval import ann
from pinsage_jax.retrieval.ann import AnnSearch, Setting

FOLDER, TABLE, IDS = "index", "index.json", "item_ids.parquet"
EXACT = "exact"


def open_search(config: Config, vectors: np.ndarray, threads: int) -> AnnSearch | None:
    """Opens the index that --search names and verifies it; None for exact search.

    Args:
      vectors: float32 [N, d], weighted by --popularity_weight.

    Raises:
      UserError: there is no such index, it is damaged, or it was built from other embeddings.
    """
    name = config.search.search
    if name == EXACT:
        return None
    setting = ann.fit_code_size(Setting.parse(name, "search"), vectors.shape[1])
    folder = pathlib.Path(config.workdir) / FOLDER
    if not (folder / TABLE).exists():
        raise UserError(f"--search={name}: {folder} holds no index; run --mode=index first.")
    about = files.read_json(folder / TABLE)
    if about.get("embeddings") != embeddings_key(config.workdir):
        raise UserError(
            f"{folder} was built from other embeddings than WORKDIR/{writer.FOLDER} holds; "
            "run --mode=index again."
        )
    file = f"{setting.index_name}.faiss"
    if file not in about["files"]:
        present = ", ".join(sorted(pathlib.Path(name).stem for name in about["files"])) or "none"
        raise UserError(
            f"--search={name}: {folder} has no such index (built: {present}); "
            "run --mode=index with it among --index_settings."
        )
    index = ann.load(folder / file, about["files"][file], vectors)
    return AnnSearch(index, setting, vectors, threads, config.search.popularity_weight)


def embeddings_key(workdir: str) -> str:
    """Identifies the exported embeddings by their checksums, for what is built from them."""
    manifest = files.read_json(pathlib.Path(workdir) / writer.FOLDER / writer.MANIFEST)
    return files.fingerprint(manifest["files"])
