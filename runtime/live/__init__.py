"""Live segmentation: a bounded queue and one worker thread between a camera and a segmenter."""
