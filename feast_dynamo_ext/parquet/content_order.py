"""stand-in until the other branch comes"""

import numpy as np
import pyarrow as pa


def content_ranks(rows: pa.Table):
    names = sorted(rows.column_names)
    texts = [repr(tuple(r[n] for n in names)) for r in rows.to_pylist()]
    _, index = np.unique(np.array(texts, dtype=object), return_inverse=True)
    return index.astype(np.int64)
