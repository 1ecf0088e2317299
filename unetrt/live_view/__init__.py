"""Parts of `unetrt live`: sources of frames, files of labels, and views at a terminal or in a browser."""
