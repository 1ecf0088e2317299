"""Figures, out of what the processes of a contender measured in each round."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from unetrt.benchmarks.checks import Checked
from unetrt.benchmarks.contenders import Device
from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.limits import product_of
from unetrt.benchmarks.result import SEGMENT, Measured
from unetrt.benchmarks.worker import Round


@dataclass(frozen=True)
class Summary:
    """Makes figures of what a contender's processes measured.

    Attributes
    ----------
    device, device_name
        Where all of them computed.
    reference
        The rounds of the contender that speed-ups are against.
    limits
        The machine's rates, by name.
    """

    device: Device
    device_name: str
    reference: list[Round]
    limits: dict[str, Figure]

    def measured(self, one: Checked, rounds: list[Round]) -> Measured:
        """Return all that is stored of a contender."""
        precision = one.contender.precision_on(self.device)
        seconds = {way: _of_rounds(rounds, way) for way in rounds[0].seconds}
        rate = self.limits[product_of(precision)]
        joules = [each.joules for each in rounds if each.joules is not None]
        return Measured(
            name=one.contender.name,
            title=one.contender.title,
            device=self.device_name,
            precision=precision,
            tile=one.about.tile,
            tiles=one.about.tiles,
            flops=one.about.flops,
            pixels_off=one.pixels_off,
            checked=one.about.checked,
            seconds=seconds,
            speedup=_of_rounds(self.reference, SEGMENT) / seconds[SEGMENT],
            latencies=tuple(took for each in rounds for took in each.seconds[SEGMENT]),
            phases={name: float(np.median([each.phases[name] for each in rounds])) for name in rounds[0].phases},
            limit=product_of(precision),
            share=one.about.flops / seconds[SEGMENT] / rate,
            host_memory=max((each.host_memory for each in rounds if each.host_memory is not None), default=None),
            device_memory=max((each.device_memory for each in rounds if each.device_memory is not None), default=None),
            joules=Figure.of(joules) if joules else None,
            engine=one.about.engine,
        )


def _of_rounds(rounds: Iterable[Round], way: str) -> Figure:
    """Return the figure of a way: of each round the median of its runs, which resemble each other."""
    return Figure.of([float(np.median(each.seconds[way])) for each in rounds])
