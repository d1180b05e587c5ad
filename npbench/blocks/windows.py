"""A wide grid of places, seen through windows of the size of training."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from npbench.blocks.places import Places
from npbench.errors import InputError


class Windows(nn.Module):
    r"""Windows of as many places as a model was trained with, half of one apart.

    Each place belongs to one of them, that in whose middle it is, but for those at the ends of the
    grid. All windows have the same places relative to their centres. What a place learns of the
    others in its window costs as much as there are places, and not its square.

    Args:
        places: a grid, of one or two inputs.
        dim_x: number of inputs.
        side: of a window, in the unit of the inputs.

    Raises:
        InputError: if the places are no grid, or the windows have no two places.

    Example:
        >>> windows = Windows(Places(0.0, 10.0, spacing=1.0), dim_x=1, side=4.0)
        >>> windows.members.tolist()
        [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [4, 5, 6, 7, 8], [6, 7, 8, 9, 10]]
        >>> windows.positions.flatten().tolist()
        [-2.0, -1.0, 0.0, 1.0, 2.0]
        >>> windows.of(torch.tensor([[-4.8], [-0.1]])).tolist()  # relative to the centre
        [0, 1]
    """

    members: Tensor
    owner: Tensor
    slot: Tensor
    centres: Tensor
    positions: Tensor

    def __init__(self, places: Places, dim_x: int, side: float) -> None:
        super().__init__()
        axes, self.step = places.axes(dim_x), places.step(dim_x)
        if not side >= self.step:
            raise InputError(
                f"window={side} must be at least {self.step:.3g}, the distance between places"
            )
        members, owners, slots, centres, positions = [], [], [], [], []
        for axis in axes:
            size = min(math.ceil(side / self.step - 1e-6) + 1, len(axis))
            start = torch.tensor([*range(0, len(axis) - size, max(1, size // 2)), len(axis) - size])
            index, half = torch.arange(len(axis)), (size - 1) / 2
            owner = (index[:, None] - start - half).abs().argmin(dim=1)
            members.append(start[:, None] + torch.arange(size))
            owners.append(owner[:, None])
            slots.append((index - start[owner])[:, None])
            centres.append(self.step * (start + half - (len(axis) - 1) / 2))
            positions.append(self.step * (torch.arange(size) - half))
        dtype = torch.get_default_dtype()
        for name, tensor in {
            "members": _product(members, [len(axis) for axis in axes]),
            "owner": _product(owners, [len(each) for each in members])[:, 0],
            "slot": _product(slots, [each.shape[1] for each in members])[:, 0],
            "centres": torch.cartesian_prod(*centres).reshape(-1, dim_x).to(dtype),
            "positions": torch.cartesian_prod(*positions).reshape(-1, dim_x).to(dtype),
        }.items():
            self.register_buffer(name, tensor, persistent=False)
        self.counts = [len(axis) for axis in axes]

    def of(self, x: Float[Tensor, "*batch dim_x"]) -> Integer[Tensor, "*batch"]:
        """The window of the place nearest to x, which is relative to the centre of the grid."""
        place = torch.zeros(x.shape[:-1], dtype=torch.long, device=x.device)
        for axis, count in zip(x.unbind(dim=-1), self.counts):
            index = (axis / self.step + (count - 1) / 2).round().long().clamp(0, count - 1)
            place = place * count + index
        return self.owner[place]


def _product(parts: Sequence[Integer[Tensor, "_ _"]], sizes: Sequence[int]) -> Tensor:
    """Indices into a product of axes of these sizes, from tables of indices into each axis."""
    result = parts[0]
    for part, size in zip(parts[1:], sizes[1:]):
        pairs = result[:, None, :, None] * size + part[None, :, None, :]
        result = pairs.flatten(2).flatten(0, 1)
    return result


def padded_groups(
    codes: Integer[Tensor, "points"], most: int
) -> Iterator[Integer[Tensor, "groups members"]]:
    """The points of each code, as rows of indices that -1 fills up; rows of about one length come
    together, in tables of at most so many numbers where a row is not longer.

    Example:
        >>> [table.tolist() for table in padded_groups(torch.tensor([7, 3, 7, 7, 3, 5]), most=6)]
        [[[0, 2, 3], [1, 4, -1]], [[5]]]
    """
    order = codes.argsort(stable=True)
    _, counts = codes[order].unique_consecutive(return_counts=True)
    groups = sorted(order.split(counts.tolist()), key=len, reverse=True)
    while groups:
        number = max(1, most // len(groups[0]))
        yield pad_sequence(groups[:number], batch_first=True, padding_value=-1)
        groups = groups[number:]
