"""Cells by plate, well and time point, from the rows of all images."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from effdet_tf.outputs.wells import count_cells
from effdet_tf.plates import storage
from effdet_tf.plates.plan import Shard
from effdet_tf.plates.work import IMAGE_SCHEMA, IMAGES

COUNTS, FAILED = "counts.csv", "failed.csv"


def read_images(out: str, shards: Iterable[Shard]) -> pd.DataFrame:
    """The rows of all images of some shards, sorted by image and page."""
    tables = [IMAGE_SCHEMA.empty_table()]
    for shard in shards:
        path = storage.join(out, IMAGES, f"{shard.name}.parquet")
        tables.append(pq.read_table(io.BytesIO(storage.read(path))))
    frame = pa.concat_tables(tables).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame.sort_values(["image", "page"], ignore_index=True)


def write_tables(out: str, shards: Iterable[Shard]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `counts.csv` and `failed.csv`; returns both tables."""
    images = read_images(out, shards)
    counts = count_cells(images)
    failed = images.loc[images["error"] != "", ["image", "page", "error"]]
    for name, table in ((COUNTS, counts), (FAILED, failed)):
        storage.write(storage.join(out, name), table.to_csv(index=False, lineterminator="\n").encode())
    return counts, failed
