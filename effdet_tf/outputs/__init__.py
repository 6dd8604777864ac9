"""Files that a person or another program opens; a cell has the same number in all of them."""

from effdet_tf.outputs.appended_csv import AppendedCsv
from effdet_tf.outputs.cells import Cells, number_cells
from effdet_tf.outputs.coco import write_coco
from effdet_tf.outputs.labels import write_labels
from effdet_tf.outputs.overlay import cell_colour, draw_overlay, stretch_contrast, write_overlay
from effdet_tf.outputs.submission import submission_rows
from effdet_tf.outputs.summary import summary_columns, summary_row
from effdet_tf.outputs.table import CELL_COLUMNS, cell_table, write_table

LABELS, TABLE, COCO, OVERLAY = ".labels.tif", ".cells.csv", ".coco.json", ".overlay.png"

__all__ = [
    "CELL_COLUMNS",
    "COCO",
    "LABELS",
    "OVERLAY",
    "TABLE",
    "AppendedCsv",
    "Cells",
    "cell_colour",
    "cell_table",
    "draw_overlay",
    "number_cells",
    "stretch_contrast",
    "submission_rows",
    "summary_columns",
    "summary_row",
    "write_coco",
    "write_labels",
    "write_overlay",
    "write_table",
]
