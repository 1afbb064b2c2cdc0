"""curvserve: serves loss, gradients and curvature of PyTorch models over HTTP."""

__all__ = ["__version__"]

__version__ = "0.1.0"
