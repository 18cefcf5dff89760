"""The energy of a run, estimated as rated power times time. It is an upper estimate, not a measurement."""

import dataclasses
import re
from collections.abc import Sequence

# Patterns of device names in JAX (the first match counts), watts, and their source. NVIDIA: thermal design
# power in the data sheet of the product. If a name has several variants, that of the largest.
_DEVICES = (
    (r"B200", 1000.0, "NVIDIA"),
    (r"H200 NVL", 600.0, "NVIDIA"),
    (r"H200", 700.0, "NVIDIA"),
    (r"H100 PCIe", 350.0, "NVIDIA"),
    (r"H100 NVL", 400.0, "NVIDIA"),
    (r"H100", 700.0, "NVIDIA"),
    (r"A100-PCIE-40GB", 250.0, "NVIDIA"),
    (r"A100 80GB PCIe", 300.0, "NVIDIA"),
    (r"A100", 400.0, "NVIDIA"),
    (r"V100-PCIE", 250.0, "NVIDIA"),
    (r"V100", 300.0, "NVIDIA"),
    (r"L40S", 350.0, "NVIDIA"),
    (r"L4\b", 72.0, "NVIDIA"),
    (r"T4\b", 70.0, "NVIDIA"),
    (r"A10\b", 150.0, "NVIDIA"),
    (r"RTX 4090", 450.0, "NVIDIA"),
    (r"RTX 3090", 350.0, "NVIDIA"),
    # For this TPU, a device is one of the two cores of a chip.
    (r"TPU v2", 140.0, "half of the chip's 280 W, Jouppi et al. 2020"),
    (r"TPU v3", 225.0, "half of the chip's 450 W, Jouppi et al. 2020"),
    (r"TPU v4$", 192.0, "the most that was measured, Jouppi et al. 2023"),
)
CPU_WATTS_PER_CORE = 6.25
GRAMS_CO2_PER_KILOWATT_HOUR = 445.0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Energy and carbon dioxide of a run.

    Attributes:
      watts: the power of all devices and cores, in W.
      kilowatt_hours: the energy at that power for the whole time, in kWh.
      grams_co2: the emissions of producing this electricity, in grams.
      assumptions: the assumptions of the estimate, as sentences.
    """

    watts: float
    kilowatt_hours: float
    grams_co2: float
    assumptions: tuple[str, ...]


def estimate_energy(devices: Sequence[str], num_cores: int, seconds: float) -> Estimate | str:
    """Returns the estimate, or text about why there is none.

    Args:
      devices: the kind of each device, as JAX names it. `cpu` is counted by its cores.
      num_cores: number of cores of all hosts that the run could use.
      seconds: the wall time, in seconds.
    """
    watts = CPU_WATTS_PER_CORE * num_cores
    assumptions = [
        f"The {num_cores} CPU cores that the run could use draw {CPU_WATTS_PER_CORE:g} W each (350 W over "
        "the 56 cores of an Intel Xeon Platinum 8480+, by Intel's specification)."
    ]
    for kind in sorted(set(devices) - {"cpu"}):
        known = next((row for row in _DEVICES if re.search(row[0], kind)), None)
        if known is None:
            return f"the rated power of {kind} is not known here"
        count = devices.count(kind)
        watts += count * known[1]
        assumptions.append(f"{count} x {kind} draw {known[1]:g} W each (rated power; {known[2]}).")
    hours = seconds / 3600
    kilowatt_hours = watts / 1000 * hours
    assumptions += [
        "All of them draw that for the whole wall time of the run; idle ones draw less.",
        "Memory, disks, network and cooling are not counted.",
        f"Carbon dioxide: {GRAMS_CO2_PER_KILOWATT_HOUR:g} g for a kWh, the world's mean of 2024 "
        "(IEA, Electricity 2025).",
    ]
    grams = kilowatt_hours * GRAMS_CO2_PER_KILOWATT_HOUR
    return Estimate(watts, kilowatt_hours, grams, tuple(assumptions))
