"""Quantisation: a model whose weights are integers of 8 or 4 bits, and whose products are of integers.

    quantization = calibrate(experiment, result.variables)       # which layers, and scales of their inputs
    quantized = quantization.changed(experiment)                 # its task computes with integers
    integers = quantization.converted(result.variables)          # its variables: int8 arrays and scales
    quantized.task.predict(integers, batch)

Weights have a symmetric scale for each output channel. Inputs of layers have one scale for each layer, or for
each row, or stay floats. With `calibrate(..., qat=True)` the changed experiment trains float weights while it
computes with rounded ones, and `stored` returns the integers of what was learnt.

Sources: Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference"; Krishnamoorthi 2018, "Quantizing deep convolutional networks for
efficient inference".

Read `configuration` first, then `layers`. `calibration` chooses layers and scales, `weights` defines what the
variables hold, and `integers` rounds.
"""

from dl.methods.quantization.calibration import calibrate
from dl.methods.quantization.configuration import Quantization, simulated

__all__ = ["Quantization", "calibrate", "simulated"]
