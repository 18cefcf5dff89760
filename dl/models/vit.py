"""The Vision Transformer, which reads an image as a sequence of patches.

Shapes: B batch, H height, W width, C channels, T tokens (the class token, then the patches row by row),
D model dim, N classes.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from dl.activations import split_examples, split_tokens
from dl.errors import UserError
from dl.models.blocks.attention import Attention
from dl.models.dropout import Dropout
from dl.models.rematerialization import rematerialized
from dl.models.scaling import Scaling, minus_one_to_one
from dl.sharding import Rules
from dl.types import Remat


class EncoderBlock(nn.Module):
    """Attention and an MLP, each with a norm before it and a residual sum.

    Source: Dosovitskiy et al. 2021, eq. 2 and 3.

    Attributes:
      num_heads: number of heads.
      mlp_dim: width of the hidden layer of the MLP.
      dropout: probability that a value of a branch or of the hidden layer is dropped in training.
      epsilon: number that is added to the variance in each normalisation.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    num_heads: int
    mlp_dim: int
    dropout: float = 0.0
    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, train: bool = False) -> jax.Array:
        x_BTD = split_tokens(x_BTD)
        y_BTD = split_tokens(nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm0")(x_BTD))
        y_BTD, _ = Attention(self.num_heads, dtype=self.dtype, name="attention")(split_examples(y_BTD))
        x_BTD += Dropout(self.dropout, deterministic=not train)(split_tokens(split_examples(y_BTD)))

        y_BTD = split_tokens(nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm1")(x_BTD))
        hidden_BTM = dense(self.mlp_dim, self.dtype, "mlp0")(split_examples(y_BTD))
        # The published weights were trained with the exact GELU, not with its tanh approximation.
        hidden_BTM = nn.gelu(hidden_BTM, approximate=False)
        hidden_BTM = Dropout(self.dropout, deterministic=not train)(hidden_BTM)
        y_BTD = dense(x_BTD.shape[-1], self.dtype, "mlp1")(hidden_BTM)
        return x_BTD + Dropout(self.dropout, deterministic=not train)(split_tokens(split_examples(y_BTD)))


class ViT(nn.Module):
    """A Transformer encoder over patches and a class token (Dosovitskiy et al. 2021, section 3.1, eq. 1-4).

    The position embeddings are learned, so the parameters fit only one image size. `resize_positions`
    resamples them for another one.

    Attributes:
      num_classes: number of classes, N. `None` means a network without a head, which returns the class token,
        shape (B, D).
      dim: width of the model, D.
      num_layers: number of encoder blocks.
      num_heads: number of heads. It must divide D.
      patch_size: side of a patch in pixels. It must divide height and width.
      mlp_dim: width of the hidden layers of the MLPs. `None` means 4·D.
      dropout: probability that a value is dropped in training.
      epsilon: number that is added to the variance in each normalisation.
      scaling: function from pixels in [0, 1] to the input range of the network.
      remat: what is computed again in the backward pass; see `dl.models.rematerialization`.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    num_classes: int | None
    dim: int
    num_layers: int
    num_heads: int
    patch_size: int = 16
    mlp_dim: int | None = None
    dropout: float = 0.0
    epsilon: float = 1e-6
    scaling: Scaling = minus_one_to_one
    remat: Remat = "none"
    dtype: Any = None

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits of shape (B, N), or the class token of shape (B, D) without a head."""
        batch, height, width, _ = image_BHWC.shape
        side = self.patch_size
        if height % side or width % side:
            raise ValueError(
                f"patch_size={side} does not divide the image {height}x{width}; choose a divisor, or resize"
            )
        patches_BHWD = nn.Conv(
            self.dim, (side, side), strides=side, padding="VALID", dtype=self.dtype, name="patches"
        )(self.scaling(image_BHWC))
        patches_BTD = patches_BHWD.reshape(batch, -1, self.dim)
        class_11D = self.param("class_token", nn.initializers.zeros, (1, 1, self.dim))
        class_B1D = jnp.broadcast_to(class_11D.astype(patches_BTD.dtype), (batch, 1, self.dim))
        x_BTD = jnp.concatenate([class_B1D, patches_BTD], 1)
        position_1TD = self.param("positions", nn.initializers.normal(0.02), (1, *x_BTD.shape[1:]))
        x_BTD += position_1TD.astype(x_BTD.dtype)
        x_BTD = Dropout(self.dropout, deterministic=not train)(x_BTD)
        block_type = rematerialized(EncoderBlock, self.remat, static_argnums=2)
        for index in range(self.num_layers):
            block = block_type(
                self.num_heads,
                self.mlp_dim or 4 * self.dim,
                self.dropout,
                self.epsilon,
                self.dtype,
                name=f"block{index}",
            )
            x_BTD = block(x_BTD, train)
        x_BD = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm")(x_BTD[:, 0])
        if self.num_classes is None:
            return x_BD
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x_BD)

    @property
    def sharding_rules(self) -> Rules:
        """The partition of the parameters over the axis `tensor`: heads and hidden units are split.

        Source: Shoeybi et al. 2019, section 3; see `blocks.partition`.
        """
        return (
            (r"block\d+/(attention/(query|key|value)|mlp0)/kernel$", PartitionSpec(None, "tensor")),
            (r"block\d+/(attention/(query|key|value)|mlp0)/bias$", PartitionSpec("tensor")),
            (r"block\d+/(attention/out|mlp1)/kernel$", PartitionSpec("tensor", None)),
        )


def resize_positions(
    positions_1TD: np.ndarray, num_tokens: int, grid: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns learned position embeddings for another number of patches, such as for images of another size.

    The embeddings of the patches are resampled like an image, by bicubic interpolation with antialiasing, as
    in timm (`resample_abs_pos_embed`). The embedding of the class token is not changed.

    Args:
      positions_1TD: position embeddings, shape (1, T, D), the class token first.
      num_tokens: T of the model that the embeddings are for.
      grid: number of rows and columns of the patches of that model. `None` means a square grid.

    Raises:
      UserError: the number of patches is not a square number, or does not fit the grid.
    """
    if positions_1TD.shape[1] == num_tokens and grid is None:
        return positions_1TD
    old = _square(positions_1TD.shape[1] - 1)
    rows, columns = grid or (_square(num_tokens - 1),) * 2
    if rows * columns != num_tokens - 1:
        raise UserError(
            f"grid={grid} has {rows * columns} patches; it must have {num_tokens - 1}, as the model has"
        )
    dim = positions_1TD.shape[-1]
    image_HWD = jnp.asarray(positions_1TD[0, 1:], jnp.float32).reshape(old, old, dim)
    resized = jax.image.resize(image_HWD, (rows, columns, dim), "bicubic", antialias=True)
    patches_1TD = np.asarray(resized).reshape(1, -1, dim).astype(positions_1TD.dtype)
    return np.concatenate([positions_1TD[:, :1], patches_1TD], 1)


def fit_positions(path: tuple[str, ...], values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns loaded values. Position embeddings are resampled if the model has another image size.

    It is used as `pretrained.load_pretrained(..., fit=vit.fit_positions)`. Both grids of patches must be
    square.
    """
    is_other = path[-1] == "positions" and values.shape != shape
    if is_other and values.ndim == 3 and values.shape[::2] == shape[::2]:
        return resize_positions(values, shape[1])
    return values


def _square(num_patches: int) -> int:
    side = math.isqrt(max(num_patches, 0))
    if side < 1 or side * side != num_patches:
        raise UserError(f"{num_patches} patches do not form a square; give the grid, or use square images")
    return side


def dense(width: int, dtype: Any, name: str) -> nn.Dense:
    """Returns a dense layer with the initializer of Glorot & Bengio (2010, eq. 16), as the authors do."""
    return nn.Dense(width, kernel_init=nn.initializers.xavier_uniform(), dtype=dtype, name=name)


def vit_ti16(num_classes: int | None = 1000, **options: Any) -> ViT:
    """Returns ViT-Ti/16 (Touvron et al. 2021): 5,717,416 parameters for 224×224 and 1000 classes."""
    return ViT(num_classes, dim=192, num_layers=12, num_heads=3, **options)


def vit_s16(num_classes: int | None = 1000, **options: Any) -> ViT:
    """Returns ViT-S/16 (Touvron et al. 2021): 22,050,664 parameters for 224×224 and 1000 classes."""
    return ViT(num_classes, dim=384, num_layers=12, num_heads=6, **options)


def vit_b16(num_classes: int | None = 1000, **options: Any) -> ViT:
    """Returns ViT-B/16: 86,567,656 parameters for 224×224 and 1000 classes."""
    return ViT(num_classes, dim=768, num_layers=12, num_heads=12, **options)
