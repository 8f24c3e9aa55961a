"""A repository of the Hugging Face hub: its Parquet files, and the upload (extra huggingface).

README.md                      the model card, see card.py
embeddings/part-00000.parquet  item_id, embedding, model_version and columns, in catalog order
encoder/                       with --export_model: the encoder of new items
"""

from __future__ import annotations

import pathlib
import re

import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from pinsage_jax.core.errors import UserError, described
from pinsage_jax.core.version import __version__
from pinsage_jax.stores.rows import StoreRows

FOLDER, ENCODER = "embeddings", "encoder"
# Files of an earlier upload that this one may lack.
_REPLACED = [f"{FOLDER}/*", f"{ENCODER}/*"]
_ROWS_PER_FILE = 250_000


def write(rows: StoreRows, table: str, folder: pathlib.Path) -> str:
    """Writes the Parquet files into a folder; returns how to go on."""
    (folder / FOLDER).mkdir()
    for number, batch in enumerate(rows.batches(_ROWS_PER_FILE)):
        path = folder / FOLDER / f"part-{number:05d}.parquet"
        pq.write_table(pa.Table.from_batches([batch]), path)
    return "hf upload USER/NAME {}, or --hub_repo=USER/NAME"


def model_name(repo: str, folder: pathlib.Path) -> str:
    """The name of a model: its repository, or else that of the folder of the run."""
    return repo or re.sub(r"[^\w.-]+", "-", folder.resolve().name, flags=re.ASCII) or "pinsage"


def upload(folder: pathlib.Path, repo: str, version: str) -> str:
    """Uploads the folder as one commit, to a repository that is made if there is none.

    A new repository is private.  The account is that of `hf auth login`, or of HF_TOKEN.

    Returns:
      The address of the commit.

    Raises:
      UserError: huggingface_hub is missing, or the hub refuses or cannot be reached.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(
            f"--hub_repo={repo} needs huggingface_hub: pip install 'pinsage-jax[huggingface]'."
        ) from None
    api = HfApi(library_name="pinsage_jax", library_version=__version__)
    try:
        api.create_repo(repo, repo_type="model", private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type="model",
            folder_path=folder,
            commit_message=f"pinsage_jax {__version__}: vectors of version {version}",
            delete_patterns=_REPLACED,
        )
    # The library raises those of its own and of the HTTP client that it uses.
    except Exception as error:
        raise UserError(
            f"--hub_repo={repo}: the upload failed ({described(error)}); {folder} is whole. Log in "
            "by `hf auth login` or HF_TOKEN, and run the command again."
        ) from error
    address = str(getattr(commit, "commit_url", commit))
    logging.info("export: uploaded to %s", address)
    return address
