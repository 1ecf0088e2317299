"""TensorRT engines: built from a model file for one kind of GPU, cached, and refused on machines they do not fit.

`facts` is everything an engine depends on; `build` makes one, `cache` finds it again, `engine_file` reads and writes it
with its sidecar, `loaded` puts it on a GPU. Importing this package imports no TensorRT.
"""

# Suffixes of engine files.
SUFFIXES = (".engine", ".plan")
