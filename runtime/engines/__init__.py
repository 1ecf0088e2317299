"""TensorRT engines: built from a model file for one kind of machine, kept in a cache, never used where they do not fit.

Importing this package imports no TensorRT.
"""

# What engine files are called.
SUFFIXES = (".engine", ".plan")
