"""Images that are larger than the memory, in blocks, on this machine or on a cluster."""
