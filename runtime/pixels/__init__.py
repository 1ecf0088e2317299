"""Pixels: frames, normalisation, scores, objects and pictures of them, as numpy arrays."""
