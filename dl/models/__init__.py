"""Models as Linen modules, one family per file. They depend on no device, data set or optimizer.

A module maps inputs to outputs and is called as `model(inputs, train=...)`. A model of text reads tokens and,
where there are any, segment ids and positions: `model(tokens, segment_ids, positions, train=...)`. `bert` is
an encoder, `gpt2` and `llama` are causal language models, and `t5` and `transformer` are encoder-decoders. A
module may import other models and the modules at the top of `dl`. Read `mlp` first, then `resnet`, then
`gpt2`.
"""

from typing import TYPE_CHECKING

from dl.system.lazy import on_first_use

if TYPE_CHECKING:
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
else:
    __getattr__, __dir__ = on_first_use(__name__)

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
