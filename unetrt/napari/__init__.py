"""The napari plugin: a widget that segments image layers, once or live.

Only this package imports napari and Qt; importing the package itself, without its modules, does not.
"""
