"""MLflow (extra mlflow): a run in WORKDIR/mlflow.db, or where MLFLOW_TRACKING_URI says.

  mlflow ui --backend-store-uri sqlite:///WORKDIR/mlflow.db

The experiment is that of MLFLOW_EXPERIMENT_NAME, or pinsage-jax.
"""

from __future__ import annotations

import logging
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

# It would report its use to its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import alembic  # noqa: F401  (so that what is missing is named before a run is begun)
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from pinsage_jax.tracking.trackers import PROJECT, run_name

STORE_FILE = "mlflow.db"
_MOST_CHARACTERS = 6000


class _MlflowRun:
    def __init__(self, client: MlflowClient, run_id: str):
        self._client, self._run_id = client, run_id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        # MLflow's names have no @.
        metrics = [
            Metric(name.replace("@", "_at_"), float(value), now, step)
            for name, value in values.items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def open_run(
    workdir: pathlib.Path, run_id: str, settings: Mapping[str, Any], resume_step: int
) -> tuple[_MlflowRun, str]:
    """See `trackers.RunOfTracker`."""
    # It would log the making of its tables.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workdir.resolve() / STORE_FILE}"
    client = MlflowClient(tracking_uri=uri)
    if run_id:
        client.update_run(run_id, status="RUNNING")
        return _MlflowRun(client, run_id), run_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    found = client.create_run(number, run_name=run_name(workdir)).info.run_id
    params = [Param(key, str(value)[:_MOST_CHARACTERS]) for key, value in settings.items()]
    client.log_batch(found, params=params)
    return _MlflowRun(client, found), found
