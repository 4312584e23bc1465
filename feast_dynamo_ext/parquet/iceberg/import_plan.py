"""What an import of a view's Parquet files would do, and everything that stands in its way.

The footers of all files are read before anything is made, and all that they show is named at once.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FileSource
from feast.data_format import DeltaFormat

from feast_dynamo_ext.arrow_types import common_type, is_list, is_time, without_dictionary
from feast_dynamo_ext.cancellation import in_threads
from feast_dynamo_ext.columns import stored_names, stored_times
from feast_dynamo_ext.declared import folder_types
from feast_dynamo_ext.errors import (
    ColumnTypeError,
    OfflineStoreError,
    SourceNotFoundError,
    SourceReadError,
    TableImportError,
)
from feast_dynamo_ext.parquet.dataset import (
    FOOTERS_AT_ONCE,
    FORMAT,
    Footer,
    limits,
    read_footers,
)
from feast_dynamo_ext.parquet.iceberg.catalog import ENDS_A_PATH, is_iceberg
from feast_dynamo_ext.parquet.iceberg.data_files import plain_layouts, table_columns
from feast_dynamo_ext.parquet.iceberg.import_record import ImportRecord, digests
from feast_dynamo_ext.parquet.iceberg.table_schema import SEQUENCE, TableLayout
from feast_dynamo_ext.parquet.iceberg.view_table import (
    TIMES,
    Extent,
    NewTable,
    declared_columns,
    plan_table,
    table_type,
)
from feast_dynamo_ext.parquet.listing import Place
from feast_dynamo_ext.parquet.scan import ReadErrors
from feast_dynamo_ext.parquet.source import ParquetSource, uri_of
from feast_dynamo_ext.storage import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from feast import RepoConfig

    from feast_dynamo_ext.storage import FileState


MOST_NAMED = 20
"""Of what stands in the way, in one message."""


# What is there


@dataclass(frozen=True)
class History:
    """The Parquet files behind a view, as their footers say.

    Attributes:
        view: the view.
        source: its files; None where there are none, or where they cannot be read as one.
        files: these, in the order of their rows.
        footers: of those that can be read.
        problems: what stands in the way of any reading.
    """

    view: Any
    source: ParquetSource | None = None
    files: tuple[FileState, ...] = ()
    footers: tuple[Footer, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema | None:
        """Names and types of all columns."""
        return self.source.schema if self.source else None

    def extent(self) -> Extent:
        """How much there is.

        Raises:
            OfflineStoreError: the files cannot be read as one.
        """
        if self.source is None:
            return Extent()
        size = sum(file.size for file in self.files)
        event_time, _ = stored_times(self.view.batch_source)
        schema = self.source.schema
        is_there = event_time in schema.names and is_time(schema.field(event_time).type)
        found = self.source.limits(event_time) if is_there else None
        if found is None or not len(found):
            return Extent(size)
        numbers = found.cast(TIMES, safe=False).cast(pa.int64())
        ends = pc.min_max(numbers).as_py()
        return Extent(size, ends["min"], ends["max"])


def read_history(view: Any, config: RepoConfig) -> History:
    """The files behind a view, and the footers of all.

    Raises:
        OfflineStoreError: a source that is not of Parquet files.
        AwsError: S3 refused.
    """
    source = view.batch_source
    settings = settings_of(source, config)
    if is_iceberg(source):
        return History(view)
    if isinstance(getattr(source, "file_format", None), DeltaFormat):
        said = (
            f"source `{source.name}` is a Delta table, whose log says which of its files count; "
            "write a plain copy of it, and name that"
        )
        return History(view, problems=(said,))
    place = Place.from_uri(uri_of(source, config), settings)
    failure: OfflineStoreError | None = None
    of_folders = folder_types([*view.entity_columns, *view.features], stored_names(source))
    opened: ParquetSource | None = None
    try:
        opened = ParquetSource.open(source, config).with_folder_types(of_folders)
        files, fragments = opened.files, opened.parts.fragments
    except SourceNotFoundError:
        return History(view)
    except (SourceReadError, ColumnTypeError) as error:
        failure = error
        try:
            files = place.files(source.name)
        except SourceReadError as of_folder:  # compacted by an earlier version
            return History(view, problems=(str(of_folder).rstrip("."),))
        fragments = [
            FORMAT.make_fragment(file.path, place.filesystem, file_size=file.size)
            for file in files
        ]
    footers, problems = _footers(fragments, ReadErrors(place, files))
    if opened is not None and not problems:
        try:
            opened = opened.with_all_types()
        except (SourceReadError, ColumnTypeError) as error:
            failure = error
    problems += _of_names(footers, files, source)
    problems += _of_types(footers)
    if failure is not None and not problems:
        problems.append(str(failure).rstrip("."))
    usable = opened if failure is None and not problems else None
    return History(view, usable, files, tuple(footers), tuple(problems))


def _footers(fragments: Sequence[Any], errors: ReadErrors) -> tuple[list[Footer], list[str]]:
    """The footers of files, and what is wrong with those that cannot be read."""

    def read(fragment: Any) -> Footer | str:
        try:
            (footer,) = read_footers([fragment], errors)
            errors.check_columns(fragment, footer.schema.names)
        except SourceReadError as error:
            return str(error).rstrip(".")
        return footer

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        found = list(pool.map(in_threads(read), fragments))
    footers = [each for each in found if isinstance(each, Footer)]
    return footers, [each for each in found if isinstance(each, str)]


def _of_names(footers: Iterable[Footer], files: Iterable[FileState], source: Any) -> list[str]:
    """Names that a table cannot have, or that stand for several columns."""
    # By a column's name and those of fields in it.
    paths: dict[tuple[str, ...], str] = {}
    problems = []
    for footer in footers:
        problems += [
            f"{footer.path} has several columns named `{name}`; give each a name of its own"
            for name in sorted(footer.repeated)
        ]
        for column in footer.schema:
            for name in _names(column):
                paths.setdefault(name, footer.path)
    derived = getattr(source, "derived_columns", {})
    for file in files:
        for folder, _ in file.partition:
            if folder not in derived:
                paths.setdefault((folder,), file.path)
    if (SEQUENCE,) in paths:
        problems.append(
            f"{paths[(SEQUENCE,)]} has a column `{SEQUENCE}`, by which tables keep the order of "
            "rows; rename it"
        )
    alike: defaultdict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for name in paths:
        # Fields of columns that differ themselves are not named again.
        key = (*name[:-1], name[-1].lower())
        alike[key].append(name)
    for names in alike.values():
        if len(names) > 1:
            said = " and ".join(f"`{'.'.join(name)}` ({paths[name]})" for name in sorted(names))
            what = "columns" if len(names[0]) == 1 else "fields"
            problems.append(
                f"{what} whose names differ in case only, which most catalogs take for one: "
                f"{said}; rename them"
            )
    return problems


def _names(column: pa.Field, within: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The name of a column, and those of all fields inside of it."""
    name, kind = (*within, column.name), without_dictionary(column.type)
    yield name
    if pa.types.is_map(kind):
        fields = [kind.key_field.with_name("key"), kind.item_field.with_name("value")]
    elif is_list(kind):
        fields = [kind.value_field.with_name("element")]
    else:
        fields = list(kind) if pa.types.is_struct(kind) else []
    for inner in fields:
        yield from _names(inner, name)


def _of_types(footers: Iterable[Footer]) -> list[str]:
    """Columns that files have in types which do not go together."""
    seen: defaultdict[str, dict[pa.DataType, list[str]]] = defaultdict(dict)
    for footer in footers:
        for column in footer.schema:
            seen[column.name].setdefault(column.type, []).append(footer.path)
    problems = []
    for name, kinds in seen.items():
        both: pa.DataType | None = pa.null()
        for kind in kinds:
            both = both if both is None else common_type(both, kind)
        if both is None:
            said = ", ".join(
                f"{kind} in {len(paths):,} files such as {paths[0]}"
                for kind, paths in kinds.items()
            )
            problems.append(f"column `{name}` has types that do not go together: {said}")
    return problems


# What is planned


@dataclass(frozen=True)
class ImportPlan:
    """An import, checked.

    Attributes:
        view: name of the view.
        new: what the table is made as, or would be.
        history: the files that are not in the table yet.
        record: what earlier imports took.
        table: the table, or None where it is to be made.
        register: the files become the table's as they are.
    """

    view: str
    new: NewTable
    history: History
    record: ImportRecord = field(default_factory=ImportRecord)
    table: Any = None
    register: bool = False

    @property
    def files(self) -> tuple[FileState, ...]:
        """What is imported."""
        return self.history.files

    @property
    def source(self) -> ParquetSource:
        """The files, to be read."""
        if self.history.source is None:
            raise TableImportError("The files of an import that was not checked.")
        return self.history.source

    @property
    def rows(self) -> int:
        """How many rows these have."""
        return sum(footer.part.metadata.num_rows for footer in self.history.footers)

    @property
    def is_into_nothing(self) -> bool:
        """Whether the table is there and nothing was ever in it, as a failed import leaves it."""
        return self.table is not None and not self.table.metadata.snapshots

    @property
    def commit_id(self) -> str:
        """The same for the same files, until a rollback takes them out."""
        versions = sorted((file.path, file.size, str(file.version[1])) for file in self.files)
        states = [versions, *sorted(self.record.undone)]
        return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:32]


def plan_import(
    view: Any,
    config: RepoConfig,
    *,
    files_of: Any = None,
    readers: Sequence[Any] = (),
    table: str | None = None,
    partition: str | None = None,
    register: bool = False,
) -> ImportPlan:
    """Check that the files of a view's history can be a table's.

    Args:
        view: the view.
        config: the repo's config.
        files_of: a view whose source has the files, where it is not `view`.
        readers: further views of the same source.
        table: name of the table.
        partition: of a table that is made.
        register: whether the files are to be registered as they are.

    Raises:
        TableImportError: names everything that stands in the way.
        SourceNotFoundError: there are no files.
        OfflineStoreError: a source that is not of Parquet files. AwsError: S3 refused.
    """
    files_of = files_of or view
    history = read_history(files_of, config)
    place = uri_of(files_of.batch_source, config)
    if not history.files and not history.problems:
        raise SourceNotFoundError(
            f"Feature view `{view.name}`: there is no file at {place} to import. Make an empty "
            f"table with `feast-dynamo table create {view.name}`."
        )
    problems = [*history.problems, *_of_columns(history, [view, *readers])]
    if history.source is None:
        raise _refused(view, place, problems)
    new = plan_table(
        view,
        config,
        readers=readers,
        there=history.schema,
        extent=history.extent(),
        table=table,
        partition=partition,
    )
    there = _loaded(new)
    if there is not None:
        new = _as_it_is(new, there, partition, problems)
    plan = ImportPlan(view.name, new, history, table=there, register=register)
    if there is not None:
        plan = _without_imported(plan, problems)
        problems += _not_in_table(plan)
    if register and plan.files:
        plan = _registered(plan, problems, partition)
    if problems:
        raise _refused(view, place, problems)
    return plan


def with_folder(view: Any, path: str) -> Any:
    """A view whose source are the files at a path, with the columns of its own source."""
    own = view.batch_source
    found = copy.copy(view)
    found.batch_source = FileSource(
        name=path,
        path=path,
        timestamp_field=own.timestamp_field,
        created_timestamp_column=own.created_timestamp_column,
        field_mapping=own.field_mapping,
    )
    return found


def _loaded(new: NewTable) -> Any:
    try:
        return new.handle.load()
    except SourceNotFoundError:
        return None


def _refused(view: Any, place: str, problems: Sequence[str]) -> TableImportError:
    named = " ".join(
        f"({number}) {problem}." for number, problem in enumerate(problems[:MOST_NAMED], 1)
    )
    more = len(problems) - MOST_NAMED
    named += f" And {more:,} more." if more > 0 else ""
    count = "1 thing stands" if len(problems) == 1 else f"{len(problems):,} things stand"
    return TableImportError(
        f"Feature view `{view.name}`: {count} in the way of making a table of {place}, and "
        f"nothing was written: {named}",
        tuple(problems),
    )


def _of_columns(history: History, views: Sequence[Any]) -> list[str]:
    """Columns that views need and files lack, and types that no table has."""
    if not history.footers:
        return []
    view, source = history.view, history.view.batch_source
    found = {name for footer in history.footers for name in footer.schema.names}
    types = _types(history)
    of_folders = {name for file in history.files for name, _ in file.partition}
    times = [name for name in stored_times(source) if name]
    declared = {name for each in views for name, _ in declared_columns(each)}
    problems = [
        f"no file has the column `{name}` of view `{view.name}`; correct the view's schema or the "
        "source's `field_mapping`"
        for name in dict.fromkeys([*times, *sorted(declared)])
        if name not in found and name not in of_folders
    ]
    event_time = times[0]
    lacking = [
        footer.path
        for footer in history.footers
        if event_time in found and event_time not in footer.schema.names
    ]
    if lacking:
        problems.append(
            f"{len(lacking):,} files such as {lacking[0]} lack the event time `{event_time}`"
        )
    problems += [
        f"column `{name}` is {types[name]}, which is no time; parse it first"
        for name in times
        if name in types and not (is_time(types[name]) or pa.types.is_null(types[name]))
    ]
    problems += [
        f"column `{name}` is {kind}, which Iceberg has no type for, and no view declares it; "
        "write the files without it, or declare it"
        for name, kind in types.items()
        if name not in declared
        and name not in times
        and not pa.types.is_null(kind)
        and table_type(kind) is None
    ]
    return problems


def _types(history: History) -> dict[str, pa.DataType]:
    """Columns and their types, as the table would get them; without those that have none."""
    if history.schema is not None:
        return {column.name: column.type for column in history.schema}
    found: dict[str, pa.DataType | None] = {}
    for footer in history.footers:
        for column in footer.schema:
            before = found.get(column.name, pa.null())
            both = None if before is None else common_type(before, column.type)
            found[column.name] = both
    return {name: kind for name, kind in found.items() if kind is not None}


def _as_it_is(new: NewTable, table: Any, partition: str | None, problems: list[str]) -> NewTable:
    """What a table that is there already is laid out as, whatever it would be if it were made."""
    found = TableLayout.from_table(table)
    layout = found or replace(new.layout, partition="none")
    if partition not in (None, layout.partition):
        problems.append(
            f"the table {new.handle.name} is there already, and not partitioned by {partition}; "
            "leave out `--partition`, or import into a new one (`--table`)"
        )
    return replace(new, layout=layout, why="as it is")


def _without_imported(plan: ImportPlan, problems: list[str]) -> ImportPlan:
    """Without the files that an earlier import took; those that were replaced since are named."""
    record, now = ImportRecord.from_table(plan.table), digests(plan.table, plan.files)
    left = [file for file in plan.files if record.version(now[file.path][0]) is None]
    problems += [
        f"{path} was replaced after it was imported, so that its rows would be in the table "
        "twice; import into a new table (`--table`)"
        for path, (digest, version) in sorted(now.items())
        if record.version(digest) not in (None, version)
    ]
    source = plan.history.source
    paths = {file.path for file in left}
    history = replace(
        plan.history,
        files=tuple(left),
        footers=tuple(each for each in plan.history.footers if each.path in paths),
        source=source and replace(source, parts=source.parts.only(paths)),
    )
    return replace(plan, history=history, record=record)


def _not_in_table(plan: ImportPlan) -> list[str]:
    """Columns of files that the table, which is there already, lacks."""
    there = table_columns(plan.table.schema()).names
    name_of_table = plan.new.handle.name
    advice = "import into a new one (`--table`), or add the column to it"
    if plan.is_into_nothing:
        advice = f"it has no rows, so `feast-dynamo table drop {name_of_table}` and import again"
    return [
        f"the table {name_of_table} is there already and has no column `{name}`; {advice}"
        for name in plan.new.columns.names
        if name not in there
    ]


# What can be registered


def _registered(plan: ImportPlan, problems: list[str], partition: str | None) -> ImportPlan:
    """The plan of a registration; what stands in its way is named."""
    target = plan.new.columns
    if plan.table is not None:
        target = table_columns(plan.table.schema())
    problems += _not_as_they_are(plan.history, target)
    wanted = partition
    if plan.table is not None:
        found = TableLayout.from_table(plan.table)
        wanted = found.partition if found else None
    spans = {each: _spanning(plan, each) for each in ("day", "month")}
    if wanted and spans.get(wanted):
        problems.append(
            f"{len(spans[wanted]):,} files such as {spans[wanted][0]} hold rows of several "
            f"{wanted}s, or do not say of which, but the table is partitioned by {wanted}; copy "
            "them (without --register), or make the table with --partition none"
        )
    if wanted is None:
        # The finest that each file lies within.
        chosen = next((each for each in ("day", "month") if not spans[each]), "none")
        new = replace(
            plan.new,
            layout=replace(plan.new.layout, partition=chosen),
            why=f"as the files are: {plan.new.why}",
        )
        return replace(plan, new=new)
    return plan


def _spanning(plan: ImportPlan, partition: str) -> list[str]:
    """Files that are not surely within one partition."""
    unit, spanning = {"day": "D", "month": "M"}[partition], []
    event_time, errors = plan.new.layout.event_time, ReadErrors(plan.source.place, plan.files)
    for footer in plan.history.footers:
        kind = footer.schema.field(event_time).type
        found = limits([footer.part], event_time, kind, errors)
        if found is not None and len(found):
            ends = pc.min_max(found.cast(TIMES, safe=False).cast(pa.int64())).as_py()
            values = np.array([ends["min"], ends["max"]], "M8[us]").astype(f"M8[{unit}]")
            if values[0] == values[1]:
                continue
        spanning.append(footer.path)
    return spanning


def _not_as_they_are(history: History, target: pa.Schema) -> list[str]:
    """Why files cannot be a table's as they are, by column."""
    why: defaultdict[str, list[str]] = defaultdict(list)
    inside = {name for footer in history.footers for name in footer.schema.names}
    for file in history.files:
        cut = ENDS_A_PATH.search(file.path)
        if cut:
            why[f"the path has `{cut[0]}`, at which readers of Iceberg end it"].append(file.path)
        for name, _ in file.partition:
            if name in target.names and name not in inside:
                why[f"column `{name}` is in the folders' names and not in the files"].append(
                    file.path
                )
    for footer in history.footers:
        stored = footer.part.metadata.schema
        leaves = [stored.column(at) for at in range(len(stored))]
        paths = {leaf.path for leaf in leaves}
        int96 = {leaf.path for leaf in leaves if leaf.physical_type == "INT96"}
        for column in plain_layouts(footer.schema):
            reason = ""
            if column.name not in target.names:
                reason = f"column `{column.name}` is none of the table"
            elif column.name in int96:
                reason = f"column `{column.name}` has times as INT96"
            elif not _reads_as(column.type, target.field(column.name).type):
                wanted = target.field(column.name).type
                reason = f"column `{column.name}` is {column.type}, not the table's {wanted}"
            elif not _leaves(column.name, column.type) <= paths:
                reason = f"column `{column.name}` names what is inside of it as old writers do"
            if reason:
                why[reason].append(footer.path)
        if _has_field_ids(footer.part.physical_schema):
            why["files have field ids of another table"].append(footer.path)
    return [
        f"{reason} ({len(paths):,} files such as {paths[0]}), so that they cannot be registered "
        "as they are; copy them (without --register)"
        for reason, paths in why.items()
    ]


def _leaves(path: str, kind: pa.DataType) -> set[str]:
    """Paths of a column's parts in a file that names them as Parquet's standard does."""
    if pa.types.is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    if pa.types.is_map(kind):
        inside = ("key", kind.key_type), ("value", kind.item_type)
        return set().union(*(_leaves(f"{path}.key_value.{name}", part) for name, part in inside))
    if pa.types.is_struct(kind):
        return set().union(*(_leaves(f"{path}.{part.name}", part.type) for part in kind))
    return {path}


def _reads_as(stored: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether readers of Iceberg read a type as another."""
    promoted = {(pa.int32(), pa.int64()), (pa.float32(), pa.float64())}
    if stored == wanted or (stored, wanted) in promoted:
        return True
    if pa.types.is_timestamp(stored) and pa.types.is_timestamp(wanted):
        return stored.unit == "us" and bool(stored.tz) == bool(wanted.tz)
    if pa.types.is_list(stored) and pa.types.is_list(wanted):
        return _reads_as(stored.value_type, wanted.value_type)
    if pa.types.is_struct(stored) and pa.types.is_struct(wanted):
        types = {part.name: part.type for part in wanted}
        return all(
            part.name in types and _reads_as(part.type, types[part.name]) for part in stored
        )
    if pa.types.is_map(stored) and pa.types.is_map(wanted):
        return _reads_as(stored.key_type, wanted.key_type) and _reads_as(
            stored.item_type, wanted.item_type
        )
    return False


def _has_field_ids(schema: pa.Schema) -> bool:
    return any(b"PARQUET:field_id" in (column.metadata or {}) for column in schema)
