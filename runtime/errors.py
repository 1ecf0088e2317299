"""Every error that unetrt raises on purpose.

One root, so that a host program can catch them all; each subclass also derives from the built-in that fits. A
message says what was given, what the rule is, and the nearest thing that would work.
"""


class UnetrtError(Exception):
    """Root of all errors of unetrt; `exit_code` is what the command line returns for it."""

    exit_code = 2


class TileError(UnetrtError, ValueError):
    """A tile side that the network's geometry does not allow, or no tile that fits the budget."""


class FrameError(UnetrtError, ValueError):
    """A frame the model cannot take: wrong shape, channel count, dtype, or pixels that are not finite."""


class ModelFileError(UnetrtError, ValueError):
    """A file that is not a model of ours: no ONNX, cut short, without a spec, or no safetensors checkpoint."""


class DatasetError(UnetrtError, ValueError):
    """Training or validation data that do not fit together."""


class OptionError(UnetrtError, ValueError):
    """An option, or a combination of options, with no meaning."""


class OutputError(UnetrtError, OSError):
    """A place that cannot be written to, or that would overwrite the input."""


class BackendUnavailableError(UnetrtError, RuntimeError):
    """An inference engine that is not installed or does not run here; the message says why."""


class InferenceError(UnetrtError, RuntimeError):
    """An inference engine failed while it loaded or ran a model."""

    exit_code = 1


class OutOfMemoryError(InferenceError, MemoryError):
    """An inference engine reported that memory ran out."""


class CudaError(InferenceError):
    """A call of CUDA's driver failed; the message names it."""


class EngineError(UnetrtError, RuntimeError):
    """A TensorRT engine that cannot be built, is not whole, or does not fit this machine."""


class SessionClosedError(UnetrtError, RuntimeError):
    """A session, lane or segmenter was used after `close()`."""


class TrainingError(UnetrtError, ArithmeticError):
    """Training cannot go on: the loss is not finite."""

    exit_code = 1


class TrainingStopped(UnetrtError):  # noqa: N818 - no error, but what the user asked for
    """Training ended early because it was asked to; everything is saved."""

    exit_code = 130


class ParityError(UnetrtError, RuntimeError):
    """The parity gate refused an export: its answer differs from the network it was made from."""

    exit_code = 1
