"""Explanations of predictions, as pure functions of a score: which parts of an input a prediction rests on.

Every function takes a score, a pure function from inputs (B, …) to scores (B, C), or a Linen model with its
variables where layers are needed. It returns NumPy arrays. One compiled program of a fixed batch size
explains any number of examples, and an example gets the same bits alone and among others. Read `gradients`
first. An explanation describes the model, not the world, and several of them do not even describe the model
well: check them with `dl.analysis.explanation_quality`.
"""

from dl.analysis.attributions.counterfactual import counterfactuals
from dl.analysis.attributions.features import grid_superpixels, slic_superpixels
from dl.analysis.attributions.grad_cam import grad_cam
from dl.analysis.attributions.gradients import (
    gradient,
    gradient_times_input,
    guided_backpropagation,
    smooth_grad,
)
from dl.analysis.attributions.integrated_gradients import expected_gradients, integrated_gradients
from dl.analysis.attributions.lime import lime, tabular_lime
from dl.analysis.attributions.occlusion import occlusion
from dl.analysis.attributions.permutation_importance import permutation_importance
from dl.analysis.attributions.relevance import relevance
from dl.analysis.attributions.rollout import attention_rollout, attention_weights
from dl.analysis.attributions.scoring import Score
from dl.analysis.attributions.shapley import exact_shapley, kernel_shap, permutation_shap
from dl.analysis.attributions.trivial import random_maps, sobel_maps

__all__ = [
    "Score",
    "attention_rollout",
    "attention_weights",
    "counterfactuals",
    "exact_shapley",
    "expected_gradients",
    "grad_cam",
    "gradient",
    "gradient_times_input",
    "grid_superpixels",
    "guided_backpropagation",
    "integrated_gradients",
    "kernel_shap",
    "lime",
    "occlusion",
    "permutation_importance",
    "permutation_shap",
    "random_maps",
    "relevance",
    "slic_superpixels",
    "smooth_grad",
    "sobel_maps",
    "tabular_lime",
]
