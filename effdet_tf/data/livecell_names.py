"""What belongs to LIVECell, and where its publishers keep it: names alone, for the command line too."""

from __future__ import annotations

# As the data set's README lists them (github.com/sartorius-research/LIVECell).
PUBLISHED = "https://livecell-dataset.s3.eu-central-1.amazonaws.com/LIVECell_dataset_2021"
LICENCE = """LIVECell (Edlund et al., Nature Methods 18, 1038, 2021; doi 10.1038/s41592-021-01249-6)
Licence: CC BY-NC 4.0, https://creativecommons.org/licenses/by-nc/4.0/ - attribution, no commercial use."""
SETS = ("wide", "single", "size", "counts")
CELL_TYPES = ("A172", "BT474", "BV2", "Huh7", "MCF7", "SHSY5Y", "SkBr3", "SKOV3")
SIZE_SPLITS = {
    "train2percent": "0_train2percent.json",
    "train4percent": "1_train4percent.json",
    "train5percent": "2_train5percent.json",
    "train25percent": "3_train25percent.json",
    "train50percent": "4_train50percent.json",
}
COUNTED = ("A172", "A549")  # types whose cells were counted by a fluorescent marker
SPLITS = ("train", "val", "test", *SIZE_SPLITS)
