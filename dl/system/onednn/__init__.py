"""Kernels of the library oneDNN, which jaxlib contains, for convolutions and matrix products on a CPU."""

from dl.system.onednn.rules import native_kernels, use_onednn

__all__ = ["native_kernels", "use_onednn"]
