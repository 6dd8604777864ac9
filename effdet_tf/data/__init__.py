"""Annotated images in, fixed-shape batches out."""
