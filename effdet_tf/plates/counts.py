"""Cells by plate, well and time point, from the rows of all images."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from effdet_tf.plates import storage
from effdet_tf.plates.plan import Shard
from effdet_tf.plates.work import IMAGE_SCHEMA, IMAGES

COUNTS, FAILED = "counts.csv", "failed.csv"
KEYS = ("plate", "well", "minutes", "page")


def read_images(out: str, shards: Iterable[Shard]) -> pd.DataFrame:
    """The rows of all images of some shards, sorted by image and page."""
    tables = [IMAGE_SCHEMA.empty_table()]
    for shard in shards:
        path = storage.join(out, IMAGES, f"{shard.name}.parquet")
        tables.append(pq.read_table(io.BytesIO(storage.read(path))))
    frame = pa.concat_tables(tables).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame.sort_values(["image", "page"], ignore_index=True)


def count_cells(images: pd.DataFrame) -> pd.DataFrame:
    """Count by plate (the image's folder), well, time and page of a stack.

    Args:
        images: as `read_images` gives them.

    Returns:
        One row for each: `KEYS`, hours since the first image of that plate, images, how many failed, cells,
        cells an image, the mean area of a cell in pixels, the share of the images under cells.
    """
    images = images.assign(
        plate=[path.rpartition("/")[0] for path in images["image"]],
        failed=images["error"] != "",
        areas=images["mean_area"] * images["cells"].astype("float64"),
    )
    groups = images.groupby(list(KEYS), dropna=False, sort=True)
    table = groups.agg(
        images=("failed", lambda failed: int((~failed).sum())),
        failed=("failed", "sum"),
        cells=("cells", "sum"),
        areas=("areas", lambda areas: areas.sum(min_count=1)),
        covered=("covered", "mean"),
    ).reset_index()
    first = table.groupby("plate")["minutes"].transform("min")
    cells = table["cells"].astype("float64")
    with np.errstate(divide="ignore", invalid="ignore"):
        table.insert(4, "hours", ((table["minutes"] - first).astype("float64") / 60).round(3))
        table["cells_per_image"] = (cells / table["images"].where(table["images"] > 0)).round(3)
        table["mean_area"] = (table.pop("areas") / cells.where(cells > 0)).round(2)
    table["covered"] = table.pop("covered").round(4)
    return table


def write_tables(out: str, shards: Iterable[Shard]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `counts.csv` and `failed.csv`; returns both tables."""
    images = read_images(out, shards)
    counts = count_cells(images)
    failed = images.loc[images["error"] != "", ["image", "page", "error"]]
    for name, table in ((COUNTS, counts), (FAILED, failed)):
        storage.write(storage.join(out, name), table.to_csv(index=False, lineterminator="\n").encode())
    return counts, failed
