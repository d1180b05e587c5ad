"""Images as functions from pixel coordinates to colour."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from datamodules.sampling import ContextTargetSplit
from npbench.errors import InputError
from npbench.task import Task

# The outputs of all values. They are divided on the CPU, because a GPU multiplies by an inverse.
_LEVELS = torch.arange(256) / 255 - 0.5


@dataclass(frozen=True)
class PixelDraw:
    """All the random numbers of a batch of image tasks. Whoever draws them chooses the order.

    `key` puts the pixels of each image in an order (see `pixel_order`): the first `num_context` of
    them are the context, the next `num_target` the targets. `noise` is added to their values in
    this order.
    """

    num_context: Int[Tensor, "batch"]
    num_target: Int[Tensor, "batch"]
    key: Int[Tensor, "batch"]
    noise: Float[Tensor, "batch points channels"] | None = None

    @classmethod
    def stack(cls, draws: list["PixelDraw"]) -> "PixelDraw":
        """Join several draws, with noise for the same number of points, into one."""

        def cat(name: str) -> Tensor:
            return torch.cat([getattr(draw, name) for draw in draws])

        noise = None if draws[0].noise is None else cat("noise")
        return cls(cat("num_context"), cat("num_target"), cat("key"), noise)


def images_to_task(
    images: UInt8[Tensor, "batch channels height width"],
    draw: PixelDraw,
    x_range: tuple[float, float] = (-1.0, 1.0),
) -> Task:
    r"""Make a task of each image: predict the colour of some pixels from that of others.

    The pixel of row i and column j of an image of height H and width W is the point

    $$x = \left(a + (b - a) \frac{i}{H-1}, a + (b - a) \frac{j}{W-1}\right), \qquad
      y = \frac{\text{value}}{255} - \frac12 + \text{noise}$$

    No pixel is both context and target, and none is either twice. The same images and draw give the
    same task on any device. The task is on the device of the images.

    Args:
        images: values from 0 to 255, on any device.
        draw: which pixels are context and which are targets.
        x_range: a and b, where the first and the last pixel of a row and of a column lie.

    Raises:
        InputError: if a draw asks for more pixels than there are.

    Example:
        >>> images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8)
        >>> fifty = torch.full([16], 50)
        >>> task = images_to_task(images, PixelDraw(fifty, 2 * fifty, key=torch.arange(16)))
        >>> task.xc.shape, task.yt.shape
        (torch.Size([16, 50, 2]), torch.Size([16, 100, 3]))
    """
    height, width = images.shape[-2:]
    split = ContextTargetSplit(draw.num_context, draw.num_target)
    num_points = split.num_points
    if num_points > height * width:
        raise InputError(f"a task of {num_points} points does not fit into {height}×{width} pixels")
    pixel = pixel_order(draw.key.to(images.device), height * width, num_points)
    x = _coordinates(height, width, x_range).to(images.device)[pixel]
    value = images.flatten(2).take_along_dim(pixel[:, None], dim=2).mT
    y = _LEVELS.to(images.device)[value.int()]
    if draw.noise is not None:
        y = y + draw.noise[:, :num_points].to(y)
    return Task(
        *(half(values) for half in (split.context, split.targets) for values in (x, y)),
        split.context_mask,
        split.target_mask,
    ).to(images.device)


def _coordinates(
    height: int, width: int, x_range: tuple[float, float]
) -> Float[Tensor, "pixels 2"]:
    """The coordinates of all pixels, row by row."""
    low, high = x_range
    return torch.cartesian_prod(
        *(low + (high - low) * torch.arange(size) / max(size - 1, 1) for size in (height, width))
    )


def pixel_order(
    key: Int[Tensor, "batch"], num_pixels: int, num_points: int
) -> Int[Tensor, "batch points"]:
    """The first `num_points` of the pixels of each image, in an order drawn by its key.

    The order is that of a 64-bit hash of key and pixel. Hashes are integers and no two are equal,
    so that the order is the same on every device and in every batch.

    Source: the hash is SplitMix64 (Steele, Lea & Flood, *Fast Splittable Pseudorandom Number
    Generators*, OOPSLA 2014).
    """
    pixel = torch.arange(num_pixels, device=key.device)
    score = _mix(key[:, None] + pixel * -0x61C8864680B583EB)
    return score.topk(num_points, dim=-1, largest=False).indices


def _mix(bits: Int[Tensor, "batch pixels"]) -> Int[Tensor, "batch pixels"]:
    """SplitMix64's finaliser, a bijection of 64-bit integers; it overwrites its input.

    Torch's integers wrap around as the bijection needs it. Their right shift repeats the sign, and
    a mask takes the repeated bits away.
    """
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        bits ^= (bits >> shift).bitwise_and_((1 << 64 - shift) - 1)
        bits *= factor
    return bits
