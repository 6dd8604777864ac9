"""Files that a person or another program opens; a cell has the same number in all of them."""

# ruff: noqa: F401 - these are the public names
from effdet_tf.outputs.appended_csv import open_csv
from effdet_tf.outputs.cells import NumberedCells, number_cells, visible_shapes
from effdet_tf.outputs.image_files import DEFAULT_FORMATS, FORMATS, open_image_files
from effdet_tf.outputs.labels import LabelPages, write_labels
from effdet_tf.outputs.overlay import cell_colour, draw_overlay
from effdet_tf.outputs.page import SUFFIXES, ImageInfo, Page, make_page
from effdet_tf.outputs.submission import submission_rows
from effdet_tf.outputs.summary import failed_row, summary_columns, summary_row, trust_columns
from effdet_tf.outputs.table import CELL_COLUMNS, MICROMETRE_COLUMNS, cell_table, write_table
