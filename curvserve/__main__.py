"""`python -m curvserve`."""

from .cli import main

main()
