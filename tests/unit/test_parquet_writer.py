"""Which columns of new files are compressed, and which have a dictionary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feast_dynamo_ext.parquet.writer import PartSize, PartWriter, worthwhile_options
from feast_dynamo_ext.storage import LocalFiles


def test_columns_are_packed_where_it_saves_a_good_part():
    generator = np.random.default_rng(8)
    rows = 20_000
    sample = pa.table(
        {
            "random": generator.random(rows),
            "ascending": np.arange(rows),
            "few": generator.choice(generator.random(40), rows),
            "names": pa.array([f"city {at % 60}" for at in range(rows)]),
            "lists": pa.array([[float(at % 3)] * 4 for at in range(rows)]),
            "nulls": pa.nulls(rows),
        }
    )
    chosen = worthwhile_options(sample)
    assert {path: chosen["compression"][path] for path in ("random", "ascending", "names")} == {
        "random": "none",
        "ascending": "zstd",
        "names": "zstd",
    }
    assert {"few", "names", "lists.list.element"} <= set(chosen["use_dictionary"])
    assert not {"random", "ascending"} & set(chosen["use_dictionary"])
    sink = pa.BufferOutputStream()
    pq.write_table(sample, sink, **chosen)
    assert pq.read_table(pa.BufferReader(sink.getvalue())).equals(sample)


def test_no_rows_are_packed_somehow():
    sample = pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.string())})
    pq.write_table(sample, pa.BufferOutputStream(), **worthwhile_options(sample))


def test_a_writer_packs_each_file_by_its_first_rows(tmp_path):
    rows = 2_000
    noise = np.random.default_rng(1).random(rows)
    table = pa.table({"first": [1.5] * rows + noise.tolist(), "second": [*noise, *[1.5] * rows]})
    size = PartSize(file_rows=rows, group_rows=rows)
    stem = str(tmp_path / "part")
    with PartWriter(LocalFiles(), stem, table.schema, size, worthwhile_options) as writer:
        writer.write(table)
    uris = [part.uri for part in writer.written]
    assert pa.concat_tables(map(pq.read_table, uris)).equals(table)
    groups = [pq.read_metadata(uri).row_group(0) for uri in uris]
    assert [[group.column(at).has_dictionary_page for at in (0, 1)] for group in groups] == [
        [True, False],
        [False, True],
    ]
