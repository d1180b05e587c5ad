"""A network of convolutions on a grid."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from npbench.errors import InputError


class UNet(nn.Module):
    """Convolutions on coarser and coarser grids, and back with the finer ones beside them.

    Args:
        num_dims: 1 or 2 dimensions of the grid.
        dim_in: channels that come in.
        dim_hidden: channels everywhere after.
        num_levels: how often the grid is halved; its sides are multiples of `multiple`.
        kernel_size: nodes of each convolution in each direction; odd.

    Source: Ronneberger et al., *U-Net: Convolutional Networks for Biomedical Image Segmentation*,
    2015.
    """

    def __init__(
        self, num_dims: int, dim_in: int, dim_hidden: int, num_levels: int, kernel_size: int = 5
    ) -> None:
        super().__init__()
        if num_levels < 0 or kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(
                f"num_levels={num_levels} must be 0 or more, and kernel_size={kernel_size} odd"
            )
        kind = nn.Conv1d if num_dims == 1 else nn.Conv2d
        self.multiple = 2**num_levels

        def convolution(channels: int, stride: int = 1) -> nn.Module:
            return kind(channels, dim_hidden, kernel_size, stride, kernel_size // 2)

        self.enter = convolution(dim_in)
        self.down = nn.ModuleList(convolution(dim_hidden, stride=2) for _ in range(num_levels))
        self.up = nn.ModuleList(convolution(2 * dim_hidden) for _ in range(num_levels))

    def forward(
        self, x: Float[Tensor, "batch channels *nodes"]
    ) -> Float[Tensor, "batch dim_hidden *nodes"]:
        x = F.relu(self.enter(x))
        finer = []
        for layer in self.down:
            finer.append(x)
            x = F.relu(layer(x))
        for layer in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = F.relu(layer(torch.cat([x, finer.pop()], dim=1)))
        return x
