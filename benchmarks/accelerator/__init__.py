"""Training on one GPU beside PyTorch, and the share of the measured ceiling of matrix products."""
