"""Counts and statistics of a data set, gathered image by image while it is written."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from effdet_tf.data.faults import Faults
from effdet_tf.data.manifest import Manifest
from effdet_tf.data.sources.base import Source

_SIZE_SAMPLE = 4096
_PERCENTILES = (5, 25, 50, 75, 95, 100)


class Tally:
    """Gathers what the manifest says."""

    def __init__(self) -> None:
        self.faults = Faults()
        self._counts: list[int] = []
        self._cell_sizes: list[np.ndarray] = []
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._depths: Counter[int] = Counter()
        self._channels: Counter[int] = Counter()
        self._types: dict[str, dict[str, int]] = {}
        self._moments = np.zeros(3)  # pixels, sum, sum of squares

    @property
    def images(self) -> int:
        """Images that were added."""
        return len(self._counts)

    def add(self, fields: dict[str, Any]) -> None:
        """Count one image, given by the fields of its record."""
        cells = len(fields["rles"])
        self._counts.append(cells)
        boxes = fields["boxes"][fields["iscrowd"] == 0]
        self._cell_sizes.append(boxes[:, 2:] - boxes[:, :2])
        self._sizes[fields["height"], fields["width"]] += 1
        self._depths[fields["bit_depth"]] += 1
        self._channels[fields["channels"]] += 1
        if fields["cell_type"]:
            entry = self._types.setdefault(fields["cell_type"], {"images": 0, "cells": 0})
            entry["images"] += 1
            entry["cells"] += cells
        pixels, mean = fields["height"] * fields["width"], fields["mean"]
        self._moments += np.array([1.0, mean, fields["std"] ** 2 + mean**2]) * pixels

    def manifest(self, source: Source, shards: list[dict[str, Any]], mask_size: int) -> Manifest:
        """The manifest of all images of `source` added so far; at least one."""
        counts = np.array(self._counts)
        sizes = np.concatenate(self._cell_sizes)
        if len(sizes) > _SIZE_SAMPLE:
            sizes = sizes[np.linspace(0, len(sizes) - 1, _SIZE_SAMPLE).astype(np.int64)]
        per_image = {str(p): round(float(np.percentile(counts, p)), 1) for p in _PERCENTILES}
        return Manifest(
            source=source.name,
            categories=source.categories,
            shards=shards,
            images=len(counts),
            cells=int(counts.sum()),
            max_cells=int(counts.max()),
            cells_per_image={"mean": round(float(counts.mean()), 1), **per_image},
            image_statistics=self._image_statistics(),
            cell_sizes=[[round(float(h), 1), round(float(w), 1)] for h, w in sizes],
            cell_types=dict(sorted(self._types.items())),
            dropped=dict(sorted(self.faults.dropped.items())),
            notes=dict(sorted(self.faults.notes.items())),
            mask_size=mask_size,
            masks=source.masks,
            pseudo=source.pseudo,
            lost=dict(sorted(self.faults.lost.items())),
        )

    def _image_statistics(self) -> dict[str, Any]:
        pixels, total, squares = self._moments.tolist()
        mean = total / pixels
        one_depth = len(self._depths) == 1  # 8 and 16 bit have no common unit
        return {
            "sizes": [
                {"height": height, "width": width, "images": images}
                for (height, width), images in sorted(self._sizes.items())
            ],
            "bit_depths": {str(depth): images for depth, images in sorted(self._depths.items())},
            "channels": {str(channels): images for channels, images in sorted(self._channels.items())},
            "mean": round(mean, 4) if one_depth else None,
            "std": round(max(squares / pixels - mean**2, 0.0) ** 0.5, 4) if one_depth else None,
        }
