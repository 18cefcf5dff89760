"""The peak FLOPs of devices, for the model FLOPs utilization (MFU, Chowdhery et al. 2022, 4.1)."""

import re
from collections.abc import Sequence

# Patterns of device names in JAX (the first match counts), and the rated dense 16-bit peak in 10^12 FLOPs per
# second: bfloat16, or float16 on V100 and T4. If a name has several variants, that of the largest.
_PEAKS = (
    (r"B200", 2250.0),
    (r"H200(?! NVL)", 989.0),
    (r"H100 PCIe", 756.0),
    (r"H100(?! NVL)", 989.0),
    (r"A100", 312.0),
    (r"V100-PCIE", 112.0),
    (r"V100", 125.0),
    (r"L40S", 362.0),
    (r"L4\b", 121.0),
    (r"T4\b", 65.0),
    (r"A10\b", 125.0),
    (r"RTX 4090", 165.0),
    (r"TPU v3", 61.5),  # a device is one of the two cores of a chip
    (r"TPU v4", 275.0),
    (r"TPU v5 ?(lite|e)", 197.0),
    (r"TPU v5", 459.0),
    (r"TPU v6", 918.0),
)


def peak_flops(devices: Sequence[str]) -> float | None:
    """Returns the peak of all devices together, in FLOPs per second; `None` if a device is not known.

    Args:
      devices: the kind of each device, as JAX names it.
    """
    peaks = [next((peak for pattern, peak in _PEAKS if re.search(pattern, kind)), None) for kind in devices]
    known = [peak * 1e12 for peak in peaks if peak is not None]
    return sum(known) if known and len(known) == len(peaks) else None
