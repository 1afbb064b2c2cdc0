"""CIFAR-10's colours."""

MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of the training pixels' red, green and blue on the scale 0..1."""

STANDARD_DEVIATION = (0.2470, 0.2435, 0.2616)
"""Their standard deviation on the same scale."""
