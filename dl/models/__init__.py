"""Models as Linen modules, one family a file. None of them mentions devices, data sets or optimizers.

A module maps inputs to outputs and is called as `model(inputs, train=...)`. It may import other models and
the words at the top of `dl`. Read `mlp` first, then `resnet`.
"""

from dl.models import airbench, alexnet, cnn, inception, mlp, mobilenet, resnet, transfer, vgg, vit

__all__ = ["airbench", "alexnet", "cnn", "inception", "mlp", "mobilenet", "resnet", "transfer", "vgg", "vit"]
