"""TensorRT engines: built from a model file for one kind of GPU, cached, and refused on machines they do not fit.

`flavours` are the TensorRTs that build and run engines. `build` makes an engine, `cache` finds it again, and
`engine_file` holds everything it depends on, reads and writes it with its sidecar, and compares it with a machine.
`unetrt.runtime.sessions.tensorrt` loads it on a GPU. Importing this package imports no TensorRT.
"""

# Suffixes of engine files.
SUFFIXES = (".engine", ".plan")
