"""Ranks of kernels by their singular values: how many to keep for an energy or a budget of parameters."""

from collections.abc import Mapping, Sequence

import numpy as np

from dl.errors import UserError


def saves(shape: Sequence[int], rank: int) -> bool:
    """Returns whether the factors of a kernel have fewer parameters than the kernel."""
    inputs, outputs = int(np.prod(shape[:-1])), shape[-1]
    return rank * (inputs + outputs) < inputs * outputs


def singular_values(kernel: np.ndarray) -> np.ndarray:
    """Returns the singular values of a kernel as a matrix of inputs and outputs, the largest first."""
    matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    return np.linalg.svd(matrix, compute_uv=False)


def rank_of_energy(values: np.ndarray, energy: float) -> int:
    """Returns the smallest rank with at least this fraction of the sum of the squared singular values."""
    shares = np.cumsum(values**2) / max(float((values**2).sum()), 1e-300)
    return min(int(np.searchsorted(shares, energy - 1e-12)) + 1, len(values))


def ranks_of_budget(
    kernels: Mapping[str, np.ndarray], spectra: Mapping[str, np.ndarray], budget: float
) -> dict[str, int]:
    """Returns ranks by which all kernels together keep at most a fraction of their parameters.

    Raises:
      UserError: the budget cannot be met.
    """
    steps: list[tuple[float, int, str, int]] = []
    ranks: dict[str, int] = {}
    left = total = sum(int(kernel.size) for kernel in kernels.values())
    for path, values in spectra.items():
        cost = kernels[path].size // kernels[path].shape[-1] + kernels[path].shape[-1]
        useful = (kernels[path].size - 1) // cost  # the largest rank that saves parameters
        ranks[path] = len(values)
        share = values**2 / max(float((values**2).sum()), 1e-300)
        # The first step goes from the whole kernel to the largest rank that saves.
        for rank in range(min(useful, len(values)), 0, -1):
            saved = cost if rank < useful else kernels[path].size - cost * rank
            lost = share[rank] if rank < useful else share[rank:].sum()
            steps.append((float(lost) / saved, -rank, path, saved))
    order: dict[str, float] = {}
    monotone = []
    for price, rank, path, saved in sorted(steps, key=lambda step: (step[2], step[1])):
        order[path] = max(order.get(path, 0.0), price)  # a smaller rank never comes before a larger one
        monotone.append((order[path], rank, path, saved))
    for _, rank, path, saved in sorted(monotone):
        if left <= budget * total:
            break
        ranks[path] = -rank
        left -= saved
    if left > budget * total:
        raise UserError(
            f"budget={budget:g} cannot be met: with rank 1 {left / total:.3f} of the parameters are left; "
            "raise it"
        )
    return ranks
