"""Backpropagation through one hidden ReLU layer, step by step in NumPy: what `jax.grad` is compared with.

Shapes: B examples, D inputs, H hidden units, C outputs.
"""

import numpy as np
from scipy.special import expit, softmax


def forward(params, x_BD):
    """Returns z¹ = x W¹ + b¹, a¹ = ReLU(z¹) and z² = a¹ W² + b²."""
    first, second = params["Dense_0"], params["Dense_1"]
    z_BH = x_BD @ first["kernel"] + first["bias"]
    a_BH = np.maximum(z_BH, 0)
    return z_BH, a_BH, a_BH @ second["kernel"] + second["bias"]


def softmax_cross_entropy_error(z_BC, target_BC):
    """Returns ∂L/∂z² of L = -Σ target log softmax(z²): every factor of the softmax cancels."""
    return softmax(z_BC, axis=-1) - target_BC


def sigmoid_squared_error(z_BC, target_BC):
    """Returns ∂L/∂z² of L = ½ Σ (sigmoid(z²) - target)²: (ŷ - y) ŷ (1 - ŷ)."""
    y_BC = expit(z_BC)
    return (y_BC - target_BC) * y_BC * (1 - y_BC)


def backpropagate(params, x_BD, target_BC, output_error):
    """Returns the gradient of the mean loss over B, shaped like `params`."""
    z_BH, a_BH, z_BC = forward(params, x_BD)
    delta_BC = output_error(z_BC, target_BC) / len(x_BD)
    delta_BH = delta_BC @ params["Dense_1"]["kernel"].T * (z_BH > 0)
    return {
        "Dense_0": {"kernel": x_BD.T @ delta_BH, "bias": delta_BH.sum(0)},
        "Dense_1": {"kernel": a_BH.T @ delta_BC, "bias": delta_BC.sum(0)},
    }
