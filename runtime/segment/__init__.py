"""The segmenter, and what happens on the host and on a GPU around a session's lanes."""
