"""Whether explanations say what a network has learned, measured on MNIST: see `__main__`."""
