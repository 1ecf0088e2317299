"""Every kind of file that the exporter writes, and a small selection that contains every pair of choices."""

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


def _pairwise():
    """Select variants greedily, each time the one with the most pairs not selected yet."""
    missing = set().union(*map(pairs, ALL))
    chosen = []
    while missing:
        chosen.append(max(ALL, key=lambda options: len(pairs(options) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


PAIRWISE = _pairwise()
REST = [options for options in ALL if options not in PAIRWISE]


def name(options):
    height, width = options.tile
    return f"{options.precision}-{options.head}-{options.input}-{options.batch}-{height}x{width}"
