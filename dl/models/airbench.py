"""The network of airbench, which reaches 94 % on CIFAR-10 in a short time (Jordan 2024, arXiv:2404.00498).

The numbers in parentheses are sections of that paper.

Shapes: B batch, H height, W width, C channels, D values of a patch, N classes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dl.models.cnn import max_pool
from dl.types import Source, Variables
from dl.warm_start import WarmStart

PATCH = 2  # side of the patches that the first layer sees


class Airbench(nn.Module):
    """Whitened patches, then stages of convolution, pool, convolution, each with batch norm and GELU (3.1).

    The first layer decorrelates 2×2 patches with the fixed filters of `whitening_filters`, and uses both
    signs of each output. Its parameter `whiten/kernel` must be frozen. Convolutions are initialised as
    partial identities (3.2). Normalisations have no scale. In evaluation the logits of an image and of its
    mirror image are averaged (3.5).

    Attributes:
      num_classes: number of classes, N.
      widths: channels of each stage.
      momentum: decay of the running statistics in each training step.
      dtype: dtype of the computation. Parameters and statistics stay float32. `None` means the dtype of
        inputs and parameters.
    """

    num_classes: int
    widths: Sequence[int] = (64, 256, 256)
    momentum: float = 0.6
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N)."""
        batch = image_BHWC.shape[0]
        x_BHWC = image_BHWC if train else jnp.concatenate([image_BHWC, image_BHWC[:, :, ::-1]])
        x_BHWD = patches(x_BHWC if self.dtype is None else x_BHWC.astype(self.dtype))
        filters = nn.Dense(x_BHWD.shape[-1], dtype=self.dtype, name="whiten")(x_BHWD)
        x_BHWC = nn.gelu(jnp.concatenate([filters, -filters], -1))
        for number, width in enumerate(self.widths):
            x_BHWC = max_pool(self._conv(width, f"stage{number}_conv0", x_BHWC))
            x_BHWC = self._norm(f"stage{number}_norm0", x_BHWC, train)
            x_BHWC = self._conv(width, f"stage{number}_conv1", x_BHWC)
            x_BHWC = self._norm(f"stage{number}_norm1", x_BHWC, train)
        x_BC = x_BHWC.max((1, 2))
        # The division makes the initial logits small, so that the initial loss is that of a uniform guess.
        logits_BN = nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="head")(x_BC) / 9
        return logits_BN if train else logits_BN.reshape(2, batch, -1).mean(0)

    def _conv(self, width: int, name: str, x_BHWC: jax.Array) -> jax.Array:
        conv = nn.Conv(
            width, (3, 3), use_bias=False, kernel_init=partial_identity, dtype=self.dtype, name=name
        )
        return conv(x_BHWC)

    def _norm(self, name: str, x_BHWC: jax.Array, train: bool) -> jax.Array:
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            use_scale=False,
            dtype=self.dtype,
            name=name,
        )
        return nn.gelu(norm(x_BHWC))


def patches(x_BHWC: jax.Array) -> jax.Array:
    """Returns every 2×2 patch as one pixel with 4 C channels. The image is one pixel smaller on each axis."""
    height, width = (size - PATCH + 1 for size in x_BHWC.shape[1:3])
    shifted = [x_BHWC[:, i : i + height, j : j + width] for i in range(PATCH) for j in range(PATCH)]
    return jnp.concatenate(shifted, -1)


def whitening_filters(images_BHWC: np.ndarray, epsilon: float = 5e-4) -> np.ndarray:
    """Returns the kernel of `whiten`, shape D × D.

    Patches times this kernel are uncorrelated, with variance 1.
    The columns are the eigenvectors of the covariance of the patches, divided by √(eigenvalue + ε) (3.1).

    Args:
      images_BHWC: training images in [0, 1]. A few thousand are enough.
      epsilon: ε, which limits the amplification of noise. The default is that of the paper.
    """
    height, width = (size - PATCH + 1 for size in images_BHWC.shape[1:3])
    shifted = [images_BHWC[:, i : i + height, j : j + width] for i in range(PATCH) for j in range(PATCH)]
    patches_ND = np.concatenate(shifted, -1, dtype=np.float64).reshape(-1, PATCH**2 * images_BHWC.shape[-1])
    values, vectors = np.linalg.eigh(patches_ND.T @ patches_ND / len(patches_ND))
    return (vectors / np.sqrt(values + epsilon)).astype(np.float32)


def partial_identity(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns an initial kernel whose first outputs copy the inputs. The other outputs are random (3.2)."""
    kernel = nn.initializers.lecun_uniform()(key, shape, dtype)
    height, width, inputs, outputs = shape
    count = min(inputs, outputs)
    kernel = kernel.at[..., :count].set(0)
    return kernel.at[height // 2, width // 2, :count, :count].set(jnp.eye(count, dtype=dtype))


def whitened(source: Source, num_images: int = 5000) -> WarmStart:
    """Returns a warm start with the first layer of `Airbench`, computed from the first training images."""

    def start(model_shapes: Variables) -> Variables:
        images = source[np.arange(min(len(source), num_images))]["image"]
        kernel = whitening_filters(images / np.float32(255))
        return {"params": {"whiten": {"kernel": kernel}}}

    return start
