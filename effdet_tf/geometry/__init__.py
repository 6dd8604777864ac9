"""Boxes, masks, run-length encodings, polygons and resampling: shapes without images or networks."""
