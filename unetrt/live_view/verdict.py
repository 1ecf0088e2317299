"""What a run comes to: the errors that its end reports."""

from collections.abc import Mapping
from pathlib import Path

from unetrt.live_view.lines import counted
from unetrt.runtime.errors import FrameError, InferenceError, OutputError, UnetrtError
from unetrt.runtime.live.status import LiveStatus, one_line


def verdict(status: LiveStatus, failure: BaseException | None, unread: Mapping[Path, FrameError]) -> UnetrtError | None:
    """Return the error that a run ends with; None where all went well. Frames that were dropped are no error.

    Parameters
    ----------
    status
        Of the closed live segmenter.
    failure
        The error of the last frame that failed.
    unread
        Why files were left out.
    """
    if status.output_errors:
        return OutputError(f"labels were lost {counted(status.output_errors, 'time')}; last error: {status.last_error}")
    if failure is not None:
        kind = type(failure) if isinstance(failure, UnetrtError) else InferenceError
        said = f"{status.failed} of {status.submitted} frames could not be segmented; the last: {one_line(failure)}"
        return kind(said)
    if len(unread) == 1:
        return next(iter(unread.values()))
    if unread:
        return FrameError(f"{len(unread)} images could not be read, the first: {next(iter(unread.values()))}")
    return None
