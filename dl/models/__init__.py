"""Models as Linen modules, one family per file. They depend on no device, data set or optimizer.

A module maps inputs to outputs and is called as `model(inputs, train=...)`. A model of text reads tokens and,
if there are any, segment ids and positions: `model(tokens, segment_ids, positions, train=...)`. Encoders are in
`bert`, causal language models in `gpt2` and `llama`, encoder-decoders in `t5` and `transformer`; they are made
of `blocks`. A module may import other models and the modules at the top of `dl`. Read `mlp` first, then
`resnet`, then `gpt2`.
"""

from dl.models import (
    airbench,
    alexnet,
    bert,
    cnn,
    gpt2,
    inception,
    llama,
    mlp,
    mobilenet,
    resnet,
    t5,
    transfer,
    transformer,
    vgg,
    vit,
)

__all__ = [
    "airbench",
    "alexnet",
    "bert",
    "cnn",
    "gpt2",
    "inception",
    "llama",
    "mlp",
    "mobilenet",
    "resnet",
    "t5",
    "transfer",
    "transformer",
    "vgg",
    "vit",
]
