"""Files that unetrt reads and writes: images, JSON records, and atomic writes."""
