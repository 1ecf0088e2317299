"""Simulated machines: nothing here runs on a GPU."""

from dataclasses import replace

from tests.conftest import small_spec
from unetrt.runtime.engines.engine_file import BuildOptions, Facts
from unetrt.runtime.machine import Machine

ADA = Machine("NVIDIA RTX 4090", "8.9", "580.82", "Linux x86_64")
AMPERE = Machine("NVIDIA RTX A4000", "8.6", "580.82", "Linux x86_64")
TURING = Machine("NVIDIA T4", "7.5", "580.82", "Linux x86_64")
HOPPER = Machine("NVIDIA H100 80GB HBM3", "9.0", "580.82", "Linux x86_64")
WINDOWS = replace(ADA, os="Windows AMD64")
NONE = Machine(os="Linux x86_64")

SPEC = small_spec()
FACTS = Facts("0" * 64, SPEC.tile, SPEC.batch, SPEC.precision, "tensorrt", "11.4.0.106", ADA, BuildOptions())
RTX = replace(FACTS, flavour="tensorrt-rtx", version="1.7.1.116", machine=NONE)
