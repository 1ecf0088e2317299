"""Numbers of bytes, for people."""


def shown(size: int) -> str:
    """Return a number of bytes as people read it: `312 MiB`, `2.4 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
