"""What a person types: open a trained network, find the cells of images, look at them, save them.

    cells = effdet_tf.load("cells").predict("image.tif")
    print(len(cells), cells.table())

The predictors in `effdet_tf.prediction` give all candidates; here are the cells that the command
`effdet_tf predict` reports.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from effdet_tf import outputs
from effdet_tf.errors import UserError, reason_of
from effdet_tf.images.normalize import check_image
from effdet_tf.images.read import Stack, encode_png
from effdet_tf.outputs.jobs import find_images
from effdet_tf.prediction.load import load as load_predictor
from effdet_tf.prediction.predictor import Predictor
from effdet_tf.prediction.results import Result
from effdet_tf.prediction.sizing import Sizing, check_sizing, predict_sized, warnings_of
from effdet_tf.prediction.trust import Trust

if TYPE_CHECKING:
    import keras
    import pandas as pd
    from matplotlib.axes import Axes

_How = tuple[float, Sizing]  # score from which on cells are reported, and what is said of their size
ImageSource = str | os.PathLike[str] | ArrayLike


@dataclass(frozen=True, eq=False)
class DetectedCell:
    """One cell.

    Attributes:
        number: its number in label image, table and files, from 1.
        class_name: its class.
        score: 0 to 1.
        box: y0, x0, y1, x1 in pixels; y1 and x1 are the edges after the last pixel.
        mask: bool `[H, W]` of the image, the whole cell, also where a better cell has the pixel in the label
            image; None for a network without masks.
    """

    number: int
    class_name: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one image, best score first: `len(cells)`, `cells[3]`, and a loop over them.

    Cell k is number k + 1 in the label image, the table and every file.

    Attributes:
        image: `[H, W]` or `[H, W, C]` as read.
        numbered: the cells with their label image, as `effdet_tf.outputs` takes them.
        category_ids: COCO id of each class.
        name: of the image, which names of files begin with: that of its file without suffix.
        file_name: of its file, as COCO states it.
        um_per_px: side of a pixel in micrometres where the file or the call says so, else None.
    """

    image: np.ndarray
    numbered: outputs.NumberedCells
    category_ids: tuple[int, ...]
    name: str = "image"
    file_name: str = "image"
    um_per_px: float | None = None

    @property
    def result(self) -> Result:
        """The arrays: boxes, scores, classes, masks (see `Result`)."""
        return self.numbered.result

    @property
    def trust(self) -> Trust | None:
        """What to expect of them; None where the network does not say, or for another score than its own."""
        return self.result.trust

    def __len__(self) -> int:
        """How many cells."""
        return len(self.result)

    @overload
    def __getitem__(self, index: int) -> DetectedCell: ...

    @overload
    def __getitem__(self, index: slice) -> list[DetectedCell]: ...

    def __getitem__(self, index: int | slice) -> DetectedCell | list[DetectedCell]:
        """A cell, counted from 0 or from the end; or, by a slice, some of them.

        Raises:
            IndexError: when there are not so many.
        """
        if isinstance(index, slice):
            return [self[k] for k in range(len(self))[index]]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} cells, numbered from 0, not {index}")
        k = index % len(self)
        result = self.result.take([k])
        patch = None if result.masks is None else result.patches()[0]
        mask = None if result.masks is None else np.zeros((result.height, result.width), bool)
        if mask is not None and patch is not None:
            rows, columns = patch.mask.shape
            mask[patch.y : patch.y + rows, patch.x : patch.x + columns] = patch.mask
        box = tuple(result.boxes[0].tolist())
        return DetectedCell(k + 1, result.class_names[result.classes[0]], float(result.scores[0]), box, mask)

    def __repr__(self) -> str:
        """Count, image and classes."""
        result = self.result
        counts = np.bincount(result.classes, minlength=len(result.class_names))
        classes = ", ".join(f"{n} {name}" for name, n in zip(result.class_names, counts, strict=True) if n)
        scaled = "" if result.scale == 1 else f", scaled {result.scale:.3g} times for the network"
        size = f"{result.height} x {result.width} px{scaled}"
        return f"<{len(self)} cells in {self.name}, {size}: {classes or 'none'}>"

    def label_image(self) -> np.ndarray:
        """Integers `[H, W]`: 0 is background, the pixels of cell k hold k + 1; no pixel is in two cells.

        Raises:
            UserError: for a network without masks.
        """
        if self.numbered.labels is None:
            raise UserError("this network has no mask head: there are boxes, but no label image")
        return self.numbered.labels

    def table(self, um_per_px: float | None = None) -> pd.DataFrame:
        """One row per cell: class, score, box, shape and brightness, the columns of `NAME.cells.csv`.

        Args:
            um_per_px: side of a pixel in micrometres, for lengths and areas in them; None takes the file's.
        """
        return outputs.cell_table(self.numbered, self.image, um_per_px or self.um_per_px)

    def overlay(self) -> np.ndarray:
        """The outlines on the contrast-stretched image, uint8 RGB; small images are enlarged."""
        return outputs.draw_overlay(self.image, self.numbered)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Show the overlay with matplotlib; gives the axes."""
        import matplotlib.pyplot as plt

        axes = plt.subplots()[1] if axes is None else axes
        axes.imshow(self.overlay(), extent=(-0.5, self.result.width - 0.5, self.result.height - 0.5, -0.5))
        axes.set_title(f"{self.name}: {len(self)} cells")
        return axes

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows."""
        return encode_png(self.overlay())

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """COCO results: `image_id`, `category_id`, `score`, `bbox` and `segmentation` (RLE) of each cell."""
        return self.result.to_coco(image_id, self.category_ids)

    def save(
        self,
        folder: str | os.PathLike[str],
        formats: Collection[str] = outputs.DEFAULT_FORMATS,
        um_per_px: float | None = None,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write the files that `effdet_tf predict` writes for an image.

        Args:
            folder: for the files; it is made.
            formats: some of `effdet_tf.outputs.FORMATS`.
            um_per_px: side of a pixel in micrometres; None takes the file's.
            overwrite: replace files that are there.

        Returns:
            The files.

        Raises:
            UserError: for an unknown format, or a file that is there already.
        """
        if isinstance(formats, str) or (unknown := set(formats) - set(outputs.FORMATS)):
            wrong = formats if isinstance(formats, str) else ", ".join(sorted(unknown))
            raise UserError(f"formats {wrong!r}: give a list of some of {', '.join(outputs.FORMATS)}")
        base, scale = os.path.join(folder, self.name), um_per_px or self.um_per_px
        classes = self.category_ids, self.result.class_names
        info = outputs.ImageInfo(self.file_name, *classes, um_per_px=scale)
        written = [f for f in formats if f != "labels" or self.numbered.labels is not None]
        paths = [Path(base + outputs.SUFFIXES[name]) for name in written]
        if not overwrite and (there := [path for path in paths if path.exists()]):
            raise UserError(f"{there[0]}: exists already; choose another folder, or overwrite=True")
        Path(base).parent.mkdir(parents=True, exist_ok=True)
        with outputs.open_image_files(base, info, formats) as add:
            add(outputs.Page(0, self.image, self.numbered, self.table(scale)))
        return paths


class Model:
    """A trained network, open.

    Attributes:
        predictor: gives all candidates of an image (see `Predictor`).
        score: a cell is reported from this score on.
        class_names: by class id.
    """

    def __init__(self, predictor: Predictor) -> None:
        """Take what a configuration says of reporting."""
        self.predictor = predictor
        self.score = predictor.config.postprocess.report_score
        self.class_names = predictor.class_names

    def predict(
        self,
        image: ImageSource,
        score: float | None = None,
        page: int | None = None,
        cell_size: float | None = None,
        um_per_px: float | None = None,
        rescale: bool = True,
    ) -> Cells:
        """Find the cells of one image.

        Args:
            image: a file, or pixels `[H, W]` or `[H, W, C]`, C 1, 3 or 4, of any real type, in whatever has
                `__array__` (numpy, zarr, dask, xarray); a numpy.memmap is read part by part.
            score: report cells from this score on, 0 to 1; None takes the network's own, `self.score`; 0
                gives all candidates, also those whose pixels all lie in better ones.
            page: of a file with several, from 0.
            cell_size: usual diameter of the cells, px: the image is scaled to what the network knows, unless
                it knows it; None: by the size of a pixel where known of both, else by what the network sees.
            um_per_px: side of a pixel in micrometres; None takes the file's.
            rescale: False shows the image to the network as it is.

        Returns:
            The cells that `effdet_tf predict` reports.

        Raises:
            UserError: for an unreadable file, a stack without `page`, an array that is no image, or a score
                outside 0 to 1, a size that is not above 0, or one that the network has no use for.
        """
        how = self._checked(score), Sizing(rescale, cell_size, um_per_px)
        if not isinstance(image, (str, os.PathLike)):
            return self._find(check_image(np.asanyarray(image)), how)
        with Stack(image) as stack:
            if page is None and stack.pages > 1:
                raise UserError(
                    f"{image}: is a stack of {stack.pages} pages; give page=0, or use predict_many"
                )
            if not 0 <= (page or 0) < stack.pages:
                raise UserError(f"{image}: has {stack.pages} pages, counted from 0; there is no page {page}")
            return self._page(stack, page or 0, Path(image).stem, how)

    def predict_many(
        self,
        images: ImageSource | Iterable[ImageSource],
        score: float | None = None,
        progress: bool = True,
        failed: list[tuple[str, str]] | None = None,
        channel: str | int | None = None,
        cell_size: float | None = None,
        um_per_px: float | None = None,
        rescale: bool = True,
    ) -> Iterator[Cells]:
        """Find the cells of many images, one after another, each page of a stack on its own.

        An image that cannot be read does not end the rest: it is told on stderr and left out.

        Args:
            images: files, folders and patterns, as `effdet_tf predict` takes them, or arrays.
            score: as for `predict`.
            progress: show a bar on stderr.
            failed: name and reason of each image that was left out are added to this list.
            channel: of files with several: its number from 1, its name, "all", or None for the one without
                fluorescence by what the file says, else the first.
            cell_size: as for `predict`, and `um_per_px` and `rescale`.
            um_per_px: likewise.
            rescale: likewise.

        Yields:
            The cells of an image or page; `name` tells which.

        Raises:
            UserError: before the first image, when a pattern matches nothing, or for a size as `predict`.
        """
        if isinstance(images, (str, os.PathLike)) or hasattr(images, "__array__"):
            images = [images]  # type: ignore[list-item]
        jobs: list[tuple[ImageSource, str]] = []
        for k, image in enumerate(images):  # type: ignore[arg-type]
            if isinstance(image, (str, os.PathLike)):
                jobs += find_images([image])
            else:
                jobs.append((image, f"image_{k}"))
        how = self._checked(score), Sizing(rescale, cell_size, um_per_px)
        check_sizing(self.predictor.config, how[1])
        return self._predict_jobs(jobs, how, progress, failed, channel)

    def _predict_jobs(
        self,
        jobs: list[tuple[ImageSource, str]],
        how: _How,
        progress: bool,
        failed: list[tuple[str, str]] | None,
        channel: str | int | None,
    ) -> Iterator[Cells]:
        def leave_out(name: str, error: Exception) -> None:
            reason = reason_of(error)
            if failed is not None:
                failed.append((name, reason))
            tqdm.write(f"error: {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr)

        for image, name in tqdm(jobs, "predict", unit="image", disable=not progress):
            for place, find in self._pages(image, name, how, channel, leave_out):
                try:
                    cells = find()
                except Exception as error:  # whatever is wrong with one image, the others follow
                    leave_out(place, error)
                else:
                    yield cells

    def _pages(
        self,
        image: ImageSource,
        name: str,
        how: _How,
        channel: str | int | None,
        leave_out: Callable[[str, Exception], None],
    ) -> Iterator[tuple[str, Callable[[], Cells]]]:
        """Name of each page of an image, and what finds its cells."""
        if not isinstance(image, (str, os.PathLike)):
            yield name, lambda: self._find(check_image(np.asanyarray(image)), how, name)
            return
        try:
            stack = Stack(image)
        except UserError as error:
            leave_out(name, error)
            return
        with stack:
            try:
                chosen, left = stack.chosen(channel)
            except UserError as error:
                leave_out(name, error)
                return
            if left:
                warnings.warn(f"{name}: {left}", stacklevel=4)
            for page in chosen:
                place = name if stack.pages == 1 else f"{name}_{page + 1:04d}"
                yield place, partial(self._page, stack, page, place, how)

    def _page(self, stack: Stack, page: int, name: str, how: _How) -> Cells:
        cells = self._find(stack.read(page), how, name, stack.um_per_px)
        return dataclasses.replace(cells, file_name=stack.path.name)

    def _find(
        self, image: np.ndarray, how: _How, name: str = "image", um_per_px: float | None = None
    ) -> Cells:
        result = predict_sized(self.predictor, image, *how, um_per_px)
        for words in warnings_of(result):
            warnings.warn(f"{name}: {words}", stacklevel=3)
        numbered = outputs.number_cells(result, min_visible=0.5 if how[0] else 0.0)
        ids = tuple(self.predictor.category_ids)
        return Cells(image, numbered, ids, name, name, how[1].um_per_px or um_per_px)

    def _checked(self, score: float | None) -> float:
        score = self.score if score is None else score
        if not 0 <= score <= 1:
            raise UserError(f"score {score}: give a number from 0 to 1")
        return float(score)


def load(
    source: str | os.PathLike[str], backbone: keras.Model | None = None, settings: Iterable[str] = ()
) -> Model:
    """Open a trained network.

    Args:
        source: the name of a network in the package, "cells"; a run folder; or what `python -m export.main`
            made of one: a `.tflite` file, which needs no TensorFlow, or the folder of a SavedModel.
        backbone: the Keras model that the network was built on, for a run with one of its own.
        settings: changes of a run's configuration, `section.key=value` each.

    Raises:
        UserError: when the source is missing or is none of these, or does not take what was given with it.
    """
    return Model(load_predictor(source, backbone, settings))
