"""Files: images, labels and JSON records, read with checks and written atomically."""
