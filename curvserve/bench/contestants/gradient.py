"""The plain gradient: the floor of all that compute it too."""

from .base import OnParameters


class Gradient(OnParameters):
    """Forward and backward, no curvature."""

    name = "gradient"

    @property
    def fields(self) -> tuple[str, ...]:
        """The gradient alone."""
        return ("grad",)
