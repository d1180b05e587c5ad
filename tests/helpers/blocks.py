"""Layers that differ from those at the start of training."""

import torch
from torch import nn

from npbench.blocks import LayerConfig

CONFIG = LayerConfig(dim_model=12, num_heads=3, dim_feedforward=20)


def randomised(module: nn.Module) -> nn.Module:
    """In float64, with norms and temperatures away from the identity that they start as."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module
