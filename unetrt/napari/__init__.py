"""The napari plugin: a widget that segments layers, once or live.

Nothing else imports napari or Qt; this package without its modules does not either.
"""
