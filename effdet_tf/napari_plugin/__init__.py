"""The napari plugin: a dock widget that finds cells, a synthetic sample, and tables of cells as files.

`napari.yaml` says what it contributes. `frames`, `networks`, `network_process`, `search`, `marks` and `files`
need neither napari nor Qt, `layers` takes a viewer, `form` and `widget` are all that knows Qt. Only napari
imports this package.
"""
