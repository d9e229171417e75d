"""Kernels for grid features. Import from the submodules; importing this package costs nothing."""

__version__ = "0.0.0"
