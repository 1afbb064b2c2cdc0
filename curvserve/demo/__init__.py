"""`curvserve demo`: a server process, and a training loop that reaches it over HTTP."""

from .demo import DemoFailed, run

__all__ = ["DemoFailed", "run"]
