"""Every kind of file that the exporter writes, and few of them that still show every pair of choices together."""

from itertools import combinations, product

from unetrt.export.exporter import Options
from unetrt.runtime.spec import HEADS, INPUT_TYPES, PRECISIONS

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
    """Greedily: always the variant that shows the most pairs not seen yet."""
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
