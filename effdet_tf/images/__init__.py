"""Pixels in: files, pages, gray values, normalisation and resizing."""
