"""The Spark session of one stage, made from the settings and stopped with the stage.

PySpark is imported when a session starts, because it is an optional dependency and its Java
process takes seconds to start.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import logging

import pinsage_jax
from pinsage_jax.config.spark import SparkConfig
from pinsage_jax.core.errors import UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Rows of an Arrow batch between Spark and Python, 8 MiB with vectors of 256 numbers.
BATCH_ROWS = 8192
_TASK_ERROR = re.compile(r"pinsage_jax\.core\.errors\.UserError: (.+)")
_MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_SECONDS_TO_ANSWER = 5.0
_PARTITIONS_PER_CORE = 4


def _settings(config: SparkConfig) -> dict[str, str]:
    """Settings of Spark, which --spark_conf can override."""
    package = str(pathlib.Path(pinsage_jax.__file__).parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        # Workers are reused by tasks, so that each imports JAX and compiles only once.
        "spark.python.worker.reuse": "true",
        "spark.executorEnv.PYTHONPATH": os.pathsep.join(paths),
        # There is a worker for each core, so more threads in each, or a shared GPU, would compete.
        "spark.executorEnv.JAX_PLATFORMS": "cpu",
        "spark.executorEnv.XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "spark.executorEnv.NUMBA_NUM_THREADS": "1",
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(BATCH_ROWS),
        "spark.sql.session.timeZone": "UTC",
        # Random numbers are products of 64-bit integers that wrap around.
        "spark.sql.ansi.enabled": "false",
    }


@contextlib.contextmanager
def spark_session(config: SparkConfig, name: str) -> Iterator[SparkSession]:
    """A session with the settings of `config`, stopped at the end of the block.

    If this process has a running session, that one is used, with the SQL settings, and is not
    stopped.

    Raises:
      UserError: PySpark or Java is missing, or the master does not answer.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
        from pyspark.sql.pandas.utils import require_minimum_pandas_version

        require_minimum_pandas_version()
    except ImportError:
        raise UserError(
            "Spark needs PySpark and pandas: pip install 'pinsage-jax[spark]'."
        ) from None
    settings = {**_settings(config), **config.spark_settings()}
    running = SparkSession.getActiveSession()
    if running is not None:
        for key, value in settings.items():
            if running.conf.isModifiable(key):
                running.conf.set(key, value)
        yield running
        return
    home = os.environ.get("JAVA_HOME")
    if not (home and (pathlib.Path(home) / "bin" / "java").exists()) and not shutil.which("java"):
        raise UserError("Spark needs Java 17 or later: install one, or set JAVA_HOME to it.")
    _require_answer(config.spark_master)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(config.spark_master).appName(f"pinsage_jax {name}")
    for key, value in settings.items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except (PySparkException, RuntimeError) as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(f"Spark does not start with these settings ({message}).") from error
    logging.info("Spark %s on %s", session.version, config.spark_master)
    try:
        yield session
    finally:
        session.stop()


def partitions(session: SparkSession, config: SparkConfig, rows: int) -> int:
    """The number of partitions for about `rows` rows: `spark_partitions`, or four per core."""
    wanted = config.spark_partitions
    if not wanted:
        wanted = _PARTITIONS_PER_CORE * session.sparkContext.defaultParallelism
        wanted = min(wanted, -(-rows // BATCH_ROWS))
    return max(wanted, 1)


@contextlib.contextmanager
def task_errors() -> Iterator[None]:
    """Raises a UserError of a task as such, in place of Spark's report with its stack traces.

    Raises:
      UserError: a task failed with one, or a package is not installed where it ran.
    """
    from pyspark.errors import PySparkException

    try:
        yield
    except PySparkException as error:
        found, missing = (one.search(str(error)) for one in (_TASK_ERROR, _MISSING_MODULE))
        if found is not None:
            raise UserError(found[1]) from error
        if missing is None:
            raise
        raise UserError(
            f"Spark's executors cannot import {missing[1]}; install pinsage-jax[spark] for their "
            "Python, or name another by PYSPARK_PYTHON."
        ) from error


def _require_answer(master: str) -> None:
    """Raises UserError if no host of spark://HOST:PORT,... accepts a connection."""
    scheme, _, hosts = master.partition("://")
    if scheme != "spark":
        return
    for address in hosts.split(","):
        host, _, port = address.rpartition(":")
        with contextlib.suppress(OSError, ValueError):
            socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
            return
    raise UserError(f"--spark_master={master} does not answer; start a master there first.")
