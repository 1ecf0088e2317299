"""What a feed of live mode has done, as a snapshot."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FeedStatus:
    """What a feed has done so far.

    Attributes
    ----------
    running
        Whether the camera runs and its images are looked at.
    submitted
        Images that were passed on.
    skipped
        Images that nobody looked at, as a newer one was there: live mode shows the newest. The camera made them; none
        is missing.
    overflows
        How often a camera was stopped because the core's buffer was full, as `stopOnOverflow` wants it.
    errors
        How often the core raised while it was asked for images.
    last_error
        The last of these, one line; empty where there was none.
    """

    running: bool = False
    submitted: int = 0
    skipped: int = 0
    overflows: int = 0
    errors: int = 0
    last_error: str = ""
