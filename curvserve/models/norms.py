"""Batch norms that are fixed: in training mode they mix samples, and nothing is per sample then."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_SAMPLES = 8


def fixed(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Return a fresh network whose batch norms stay in evaluation mode, fit for training.

    Their statistics are those of one batch of noise. With the usual 0 and 1 the outputs of a deep
    residual net are so large at first that all classes but one have probability zero.

    Args:
        network: the network, whose other modules keep their modes.
        shape: of one input.
    """
    modes = [(module, module.training) for module in network.modules()]
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        network.eval()
        for norm in norms:
            norm.train().momentum = 1.0
        with torch.no_grad():
            network(torch.randn(_SAMPLES, *shape))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training and not isinstance(module, _BatchNorm)
    return network
