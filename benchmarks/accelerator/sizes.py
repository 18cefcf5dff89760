"""The sizes of the networks: as published, for a GPU, and tiny ones that test the script on a CPU."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a network and of its batches.

    Attributes:
      batch_size: examples in a batch.
      side: height and width of the images, in pixels.
      dim: width of a Transformer.
      num_layers: number of its layers.
      num_heads: number of heads of its attention.
      patch_size: side of a patch, in pixels.
      length: tokens of a sequence.
      vocab_size: number of tokens.
      widths: channels of the stages of Airbench.
    """

    batch_size: int
    side: int = 32
    dim: int = 384
    num_layers: int = 12
    num_heads: int = 6
    patch_size: int = 16
    length: int = 1024
    vocab_size: int = 50_304
    widths: tuple[int, int, int] = (64, 256, 256)


FULL = {
    "resnet18": Size(1024),
    "vit_s": Size(256, side=224),
    "gpt2": Size(16, dim=768, num_heads=12),
    "airbench": Size(500),
}
TINY = {
    "resnet18": Size(8),
    "vit_s": Size(4, side=32, dim=64, num_layers=2, num_heads=2),
    "gpt2": Size(2, dim=64, num_layers=2, num_heads=2, length=32, vocab_size=256),
    "airbench": Size(8, widths=(16, 32, 32)),
}
