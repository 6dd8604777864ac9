"""Files that a person or another program opens; a cell has the same number in all of them."""

from effdet_tf.images.read import stretch_contrast
from effdet_tf.outputs.appended_csv import AppendedCsv
from effdet_tf.outputs.cells import NumberedCells, number_cells, visible_shapes
from effdet_tf.outputs.coco import write_coco
from effdet_tf.outputs.image_files import (
    COCO,
    DEFAULT_FORMATS,
    FORMATS,
    GEOJSON,
    LABELS,
    OVERLAY,
    OVERLAY_STACK,
    ROIS,
    TABLE,
    YOLO,
    ImageFiles,
)
from effdet_tf.outputs.labels import LabelPages, write_labels
from effdet_tf.outputs.overlay import cell_colour, draw_overlay, write_overlay
from effdet_tf.outputs.page import ImageInfo, Page
from effdet_tf.outputs.submission import submission_rows
from effdet_tf.outputs.summary import failed_row, summary_columns, summary_row
from effdet_tf.outputs.table import CELL_COLUMNS, MICROMETRE_COLUMNS, cell_table, write_table
from effdet_tf.outputs.yolo import CLASSES, write_classes, write_yolo

__all__ = [
    "CELL_COLUMNS",
    "CLASSES",
    "COCO",
    "DEFAULT_FORMATS",
    "FORMATS",
    "GEOJSON",
    "LABELS",
    "MICROMETRE_COLUMNS",
    "OVERLAY",
    "OVERLAY_STACK",
    "ROIS",
    "TABLE",
    "YOLO",
    "AppendedCsv",
    "NumberedCells",
    "Page",
    "ImageFiles",
    "ImageInfo",
    "LabelPages",
    "cell_colour",
    "cell_table",
    "draw_overlay",
    "failed_row",
    "number_cells",
    "stretch_contrast",
    "submission_rows",
    "summary_columns",
    "summary_row",
    "visible_shapes",
    "write_classes",
    "write_coco",
    "write_labels",
    "write_overlay",
    "write_table",
    "write_yolo",
]
