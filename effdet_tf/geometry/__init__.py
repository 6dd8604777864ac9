"""Boxes, masks, run-length encodings, polygons and resampling: shapes without images or networks."""

MASK_SIZE = 28  # side of stored and of predicted bitmaps where nothing else is set
