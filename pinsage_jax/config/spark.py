"""Settings of what runs on Apache Spark."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, constant, option
from pinsage_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class SparkConfig(Checked):
    """Apache Spark, for catalogs that one machine is too small for."""

    engine: str = option(
        "local",
        "What --mode=embed computes with: this machine, or Apache Spark (extra 'spark' and Java "
        "17 or later); the embeddings are the same to 1e-5. spark_walks: samples the neighborhoods "
        "on Spark too; the lists are the same, but walks in one machine's memory are much faster "
        "where the graph fits.",
        choices=("local", "spark", "spark_walks"),
    )
    spark_master: str = option(
        "local[*]", "Spark's master, as in local[2] or spark://HOST:PORT or yarn."
    )
    spark_folder: str = option(
        "",
        "Folder for Spark's tables between stages, at the same path on this machine and on every "
        "executor; empty: WORKDIR.",
    )
    spark_tables: str = option(
        "",
        "Folder or URL (s3://, gs://, hdfs://) of the catalog as Parquet tables: --mode=export "
        "writes them from WORKDIR/prepared, and --mode=embed --engine=spark reads them and writes "
        "the embeddings there, with a workdir that needs checkpoints alone.",
    )
    spark_partitions: int | None = constant(
        None,
        "Partitions of every shuffle; auto: four a core, and no more than the rows need.",
        auto=int,
        low=1,
    )
    spark_conf: str = option(
        "",
        "More settings of Spark, KEY=VALUE separated by commas, such as spark.executor.memory=8g.",
    )

    @property
    def on_spark(self) -> bool:
        """Whether Spark computes the embeddings."""
        return self.engine != "local"

    def validate(self) -> None:
        super().validate()
        if not self.spark_master:
            raise UserError("--spark_master is empty; name one, such as local[*].")
        self.spark_settings()

    def spark_settings(self) -> dict[str, str]:
        """--spark_conf as a dictionary.

        Raises:
          UserError: a part is not KEY=VALUE.
        """
        settings = {}
        for part in filter(None, (text.strip() for text in self.spark_conf.split(","))):
            key, equals, value = part.partition("=")
            if not equals or not key.startswith("spark."):
                raise UserError(f"--spark_conf: '{part}' is not spark.KEY=VALUE.")
            settings[key] = value
        return settings
