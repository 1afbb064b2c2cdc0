"""The HTTP face of curvserve: routes by noun, bodies, answers, problems."""

from .app import create_app
from .limits import Limits

__all__ = ["Limits", "create_app"]
