"""Live segmentation: a bounded queue and one worker between a camera and a segmenter (`LiveSegmenter`)."""
