"""Readers of annotated image sets: one file per kind, all giving the same `Source`."""
