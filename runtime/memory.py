"""Numbers of bytes, for people."""


def shown(size: int) -> str:
    """Return a number of bytes as people read it: `7 KiB`, `312 MiB`, `2.4 GiB`."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
