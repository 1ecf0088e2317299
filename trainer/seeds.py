"""Seeds: every random number of a training follows from its seed and its place, and from nothing drawn before it.

So a training continues where it stopped, and several processes draw what one would have drawn.
"""

import numpy as np
import torch

# What random numbers are for: streams of the same step must not be the same numbers.
WEIGHTS, ORDER, SAMPLE, DROPOUT = range(4)


def seed_for(seed: int, purpose: int, *place: int) -> int:
    """Return a 63-bit seed for a purpose and a place, such as step and tile."""
    return int(np.random.SeedSequence((seed, purpose, *place)).generate_state(1, np.uint64)[0] >> 1)


def generator_for(seed: int, purpose: int, *place: int) -> torch.Generator:
    """Return torch's generator on the CPU for a purpose and a place."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, *place))
