"""Every kind of file that the exporter writes, a selection with every pair of choices, and one with every choice."""

from itertools import combinations, product

from unetrt.export.exporter import Options
from unetrt.runtime.model.spec import HEADS, INPUT_TYPES, PRECISIONS

CHOICES = {
    "tile": [(60, 60), (60, 76)],
    "precision": PRECISIONS,
    "head": HEADS,
    "batch": [1, 4],
    "input": INPUT_TYPES,
}
ALL = [Options(**dict(zip(CHOICES, values, strict=True))) for values in product(*CHOICES.values())]


def pairs(options):
    values = [(name, getattr(options, name)) for name in CHOICES]
    return set(combinations(values, 2))


def singles(options):
    return {(name, getattr(options, name)) for name in CHOICES}


def _covering(parts, variants):
    """Select variants greedily, each time the one with the most parts not selected yet."""
    missing = set().union(*map(parts, variants))
    chosen = []
    while missing:
        chosen.append(max(variants, key=lambda options: len(parts(options) & missing)))
        missing -= parts(chosen[-1])
    return chosen


PAIRWISE = _covering(pairs, ALL)
# Of these, some in which every choice occurs.
FEW = _covering(singles, PAIRWISE)
REST = [options for options in ALL if options not in PAIRWISE]


def name(options):
    height, width = options.tile
    return f"{options.precision}-{options.head}-{options.input}-{options.batch}-{height}x{width}"
