"""The napari plugin: a dock widget that finds cells, a synthetic sample, and tables of cells as files.

`napari.yaml` says what it contributes. `frames`, `networks`, `search` and `marks` need neither napari nor Qt,
`layers` takes a viewer, and `widget` is all that knows Qt. Only napari imports this package.
"""
