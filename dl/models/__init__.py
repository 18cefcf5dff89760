"""Models as Linen modules, one family per file. They depend on no device, data set or optimizer.

A module maps inputs to outputs and is called as `model(inputs, train=...)`. It may import other models and
the modules at the top of `dl`. Read `mlp` first, then `resnet`.
"""

from dl.models import airbench, alexnet, cnn, inception, mlp, mobilenet, resnet, transfer, vgg, vit

__all__ = ["airbench", "alexnet", "cnn", "inception", "mlp", "mobilenet", "resnet", "transfer", "vgg", "vit"]
