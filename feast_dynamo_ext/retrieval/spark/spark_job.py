"""Feast's retrieval job on Spark: results stay on the executors until they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import OfflineStoreError, UnsupportedTypeError
from feast_dynamo_ext.retrieval.engines.base import Result
from feast_dynamo_ext.retrieval.job import ParquetRetrievalJob
from feast_dynamo_ext.retrieval.join import opened, result_schema
from feast_dynamo_ext.retrieval.spark.buckets import Bucketed
from feast_dynamo_ext.retrieval.spark.failures import told
from feast_dynamo_ext.retrieval.spark.point_in_time import Group
from feast_dynamo_ext.retrieval.spark.relations import in_chunks
from feast_dynamo_ext.retrieval.spark.rows import (
    Finish,
    ResultColumn,
    batches_of,
    blocks_of,
    in_blocks,
    written_by_executors,
)
from feast_dynamo_ext.retrieval.spark.session import spark_session
from feast_dynamo_ext.retrieval.spark.spark_view import NUMBER, ViewOnSpark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from feast.data_source import DataSource

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.explain import Explanation
    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import PitPlan, ViewPlan


@dataclass(frozen=True)
class SparkResult(Result):
    """Rows that Spark finds when they are asked for.

    Attributes:
        relation: in blocks, in the types in which values travel; see `rows.in_blocks`.
        finish: makes the result's rows of them.
    """

    relation: Any
    finish: Finish


def join_on_spark(
    plan: PitPlan,
    entities: EntityRows,
    open_source: Callable[[DataSource], ParquetSource],
    conf: Mapping[str, str],
    remote: str | None,
) -> SparkResult:
    """The entity rows with the features that each of them sees; as `retrieval.join.join`.

    Raises:
        EntityRowsError: entity rows that cannot be joined.
        DependencyError: Spark is not installed.
        ConfigError: it cannot be started.
        OfflineStoreError: what is not joined on Spark yet, by name; see also its subclasses.
    """
    plan, sources = opened(plan, open_source)
    schema = result_schema(plan, entities.table.schema, sources)
    views = [
        ViewOnSpark.from_plan(at, plan, source, entities) for at, source in enumerate(sources)
    ]
    spark = spark_session(conf, remote)
    relation = _joined(spark, views, entities)
    own = [
        ResultColumn(field.name, f"e{at}", field.type)
        for at, field in enumerate(entities.table.schema)
    ]
    features = [column for one in views for column in _features(one)]
    finish = Finish((*own, *features), schema)
    rows = entities.table.num_rows
    ordered = in_blocks(spark, relation, rows)
    return SparkResult(schema, rows, partial(batches_of, ordered, finish), ordered, finish)


BY_WINDOW = (
    "rows and entity rows are sorted by keys and time together, once for all views of the same "
    "keys, and a window finds what each entity row sees"
)
IN_BUCKETS = (
    "rows and entity rows of some keys meet in a task, which joins them as one machine does"
)
OF_TASKS = "the executors', which spill to their disks"


def _in_tasks(view: ViewPlan) -> bool:
    return view.derived is not None or view.has_eras


def _features(one: ViewOnSpark) -> Iterator[ResultColumn]:
    """The result's columns of a view."""
    view = one.view
    if view.derived is not None:
        for at, output in enumerate(view.derived.outputs):
            yield ResultColumn(output.name, f"v{one.at}_{at}", one.outputs[at])
        return
    for column, name, kind in view.declared:
        at = view.feature_columns.index(column)
        yield ResultColumn(name, f"v{one.at}_{at}", one.outputs[at], kind, view.view)


def _alike(views: Sequence[ViewOnSpark]) -> list[tuple[ViewOnSpark, ...]]:
    """The views by how entity rows are compared with them."""
    groups: list[list[ViewOnSpark]] = []
    for one in views:
        group = next((group for group in groups if group[0].is_like(one)), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    return list(map(tuple, groups))


def _joined(spark: Any, views: Sequence[ViewOnSpark], entities: EntityRows) -> Any:
    """Entity rows, e0, e1 ..., and what each sees, v0_0 ..., with their numbers n; in no order."""
    groups = _alike([one for one in views if not one.in_buckets])
    columns = entities.table.columns
    own = pa.table(list(columns), names=[f"e{at}" for at in range(len(columns))])
    found = [Group(group, entities) for group in groups]
    if found:  # the entity rows' columns go along with the first
        relation = found[0].found(spark, own)
    else:
        numbers = pa.array(np.arange(own.num_rows))
        relation = in_chunks(spark, own.append_column(NUMBER, numbers))
    for group in found[1:]:
        relation = relation.join(group.found(spark), NUMBER)
    for one in views:
        if one.in_buckets:
            relation = relation.join(Bucketed(one, entities).found(spark), NUMBER)
    return relation


@dataclass
class SparkRetrievalJob(ParquetRetrievalJob):
    """A retrieval that runs on Spark."""

    def to_spark_df(self) -> Any:
        """The rows as a Spark DataFrame, which nothing has computed yet.

        Each partition has the rows of a stretch of the entity rows, in their order.

        Raises:
            OfflineStoreError: there are on-demand views, whose functions get all rows at once.
            UnsupportedTypeError: a column that Spark has no type for.
        """
        if self.odfvs:
            names = sorted(view.name for view in self.odfvs)
            raise OfflineStoreError(
                f"The on-demand views {names} are computed on all rows at once, so they have no "
                "Spark DataFrame. Use `to_arrow()`, or leave their features out."
            )
        result = self._on_spark()
        finish = replace(result.finish, schema=_sparks(result.schema))
        from pyspark.sql.pandas.types import from_arrow_schema

        @told
        def made(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                yield finish.batch(batch)

        return result.relation.mapInArrow(made, from_arrow_schema(finish.schema))

    def explain(self) -> Explanation:
        """What the retrieval will read and how Spark will join it; no rows are read.

        Raises: as of one machine.
        """
        found = super().explain()
        planned = [] if self.plan is None else getattr(self.plan, "views", [])
        views = tuple(
            replace(view, plan="spark", why=IN_BUCKETS if _in_tasks(plan) else BY_WINDOW)
            for view, plan in zip(found.views, planned, strict=True)
        )
        return replace(found, views=views, memory=OF_TASKS)

    def to_remote_storage(self) -> list[str]:
        """Write the rows as Parquet files below `staging_location`, by the executors.

        As of one machine; a file is a million rows. Of on-demand features all rows go through
        the driver.

        Raises: as of one machine.
        """
        if self.odfvs:
            return super().to_remote_storage()
        result, folder = self._on_spark(), self.new_staging_folder()
        settings = self.config.offline_store.aws()
        return written_by_executors(
            result.relation, result.finish, blocks_of(result.rows), folder, settings
        )

    def _on_spark(self) -> SparkResult:
        return cast("SparkResult", self.result())


def _sparks(schema: pa.Schema) -> pa.Schema:
    """The schema with types that Spark takes, each of which has all values of the one before."""
    return pa.schema([field.with_type(_spark_kind(field.name, field.type)) for field in schema])


WIDER = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.large_string(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.date64(): pa.timestamp("us"),
}


def _spark_kind(name: str, kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_spark_kind(name, kind.value_type))
    if pa.types.is_time(kind) or pa.types.is_decimal256(kind) or pa.types.is_null(kind):
        raise UnsupportedTypeError(
            f"Column `{name}` is {kind}, which Spark has no type for. Use `to_arrow()` or "
            "`to_remote_storage()`, or cast it in the source."
        )
    return WIDER.get(kind, kind)
