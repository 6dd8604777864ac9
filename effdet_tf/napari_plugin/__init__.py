"""The napari plugin: a dock widget that finds cells, a synthetic sample, and tables of cells as files.

`napari.yaml` lists what it contributes. `form` and `widget` use Qt, `viewer_layers` takes a viewer, the other
modules need neither. Only napari imports this package.
"""
