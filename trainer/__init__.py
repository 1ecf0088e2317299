"""unetrt.trainer: trains the 2015 U-Net with torch, and scores segmentations.

Data go through `dataset` (read), `targets` and `samples` (prepare, draw tiles), `augmentation` (deform), `unet` and
`learner` (one step), `training` (the loop), `validation` (whole images) and `checkpoint` (safetensors). `metrics` and
`evaluation` are the scores of `unetrt eval`.
"""
