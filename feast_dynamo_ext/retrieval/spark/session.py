"""The Spark session that a retrieval runs in: the one that is there, or a new one.

On Glue and EMR the platform has made one, or says where its cluster is. `spark_remote` is a Spark
Connect server; without either, Spark runs on this machine.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = "local[*]"

QUIET = {
    # Shuffled rows are read in parts as large as they turn out to be.
    "spark.sql.adaptive.enabled": "true",
    # No servers on this machine's other addresses.
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
}
"""Settings of a session on this machine, where nobody says others."""

ELSEWHERE = (
    *("SPARK_HOME", "SPARK_CONF_DIR", "SPARK_REMOTE"),
    *("SPARK_ENV_LOADED", "PYSPARK_GATEWAY_PORT"),
)
"""Variables of the environment by which EMR, Glue or spark-submit say where Spark is."""


def spark_session(conf: Mapping[str, str], remote: str | None) -> Any:
    """The active session, or a new one.

    Args:
        conf: settings of a new session.
        remote: address of a Spark Connect server, ``sc://host:port``; None for none.

    Raises:
        DependencyError: Spark is not installed.
        ConfigError: Spark refuses a setting, or cannot be started.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise DependencyError(
            "`engine: spark` needs PySpark. Install the extra: `pip install "
            "'feast-dynamo-ext[spark]'`; on EMR and Glue it is there already."
        ) from error
    active = None if remote else SparkSession.getActiveSession()
    if active is not None:
        return active
    builder = SparkSession.builder.appName("feast-dynamo")
    settings = dict(conf)
    if remote:
        builder = builder.remote(remote)
    elif _is_here(settings):
        settings = {**QUIET, "spark.master": HERE, **settings}
        # Workers would take the system's Python; a cluster's have their own.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("SPARK_LOCAL_IP", settings["spark.driver.bindAddress"])
    for name, value in settings.items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except (PySparkException, OSError, RuntimeError) as error:
        where = remote or settings.get("spark.master", "the cluster that is configured")
        raise ConfigError(
            f"Spark cannot be started ({where}): {str(error).splitlines()[0]}. Check `spark_conf` "
            "and `spark_remote` of the offline store, and that Java 17 is installed."
        ) from error


def _is_here(settings: Mapping[str, str]) -> bool:
    """Whether neither settings nor the platform say where the cluster is."""
    if settings.get("spark.master", "").startswith("local"):
        return True
    return "spark.master" not in settings and not any(name in os.environ for name in ELSEWHERE)
