"""One set of points split over several processes, each of which attends to its shard."""

from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from npbench.attention import AttentionState
from npbench.errors import InputError
from npbench.structure import Record


def all_merge(
    state: AttentionState,
    group: dist.ProcessGroup | None = None,
    parameters: Iterable[Tensor] = (),
) -> AttentionState:
    r"""The state of the union of all ranks' points: `merge` as a collective operation.

    $$S = s_0 \cup s_1 \cup \dots \cup s_{R-1}$$

    merged in the order of the ranks, so that all hold the same S to the last bit. The states travel
    in one all_gather, their gradients in one all_reduce, both of a size that the numbers of points
    do not change. Every rank may go on from S to a loss $L_r$ of its own. Into its shard flows the
    gradient of their sum:

    $$\frac{\partial}{\partial s_r} \sum_{r'} L_{r'}
      = \frac{\partial S}{\partial s_r} \sum_{r'} \frac{\partial L_{r'}}{\partial S}$$

    The mean over ranks of the parameters' gradients, which `DistributedDataParallel` takes, is
    therefore the gradient of the mean loss, exactly as if one process had all points.

    All ranks call this together, all with gradients or all without, and then all call backward; an
    empty shard takes part like any other. A rank without targets has the loss
    `0.0 * merged.out.sum()`. Their states must have one shape and type, which a single collective
    cannot check; with `TORCH_DISTRIBUTED_DEBUG=DETAIL` in the environment torch checks it.

    Args:
        state: the state of this rank's shard.
        group: the ranks among which the points are split; by default all.
        parameters: those of the model that made the state. On every rank backward reaches them
            after the all_reduce, even where an empty shard depends on none of them: under
            `DistributedDataParallel` the collectives of all ranks then come in the same order.

    Raises:
        InputError: if there is no process group, or this process is not in it.

    Example:
        >>> from torch.distributed import HashStore
        >>> torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        >>> state = AttentionState(torch.zeros(1, 4, 8), torch.randn(1, 4, 8, 16))
        >>> torch.equal(all_merge(state).out, state.out)
        True
        >>> torch.distributed.destroy_process_group()
    """
    rank = _rank(group)
    packed = torch.cat([state.lse[..., None], state.out], dim=-1).detach()
    shards = [AttentionState(z[..., 0], z[..., 1:]) for z in _all_gather(packed, group)]
    shards[rank] = state
    merged = reduce(AttentionState.merge, shards)
    # Backward is collective too: this leaf makes every rank take part where gradients are recorded.
    anchor = state.lse.new_empty(0).requires_grad_()
    return AttentionState(*_SumGradients.apply(group, merged.lse, merged.out, anchor, *parameters))


def all_sum(
    record: Record, group: dist.ProcessGroup | None = None, parameters: Iterable[Tensor] = ()
) -> Record:
    r"""The sum of all ranks' records, tensor by tensor: one all_reduce, in float64.

    For states that are sums of their points, such as second moments. Gradients are `all_merge`'s,
    and so are the rules: all ranks call this together, with records of one shape, and then all call
    backward, which is one all_reduce too.

    Args:
        record: of this rank's shard.
        group: the ranks among which the points are split; by default all.
        parameters: as of `all_merge`.

    Raises:
        InputError: if there is no process group, or this process is not in it.
    """
    _rank(group)
    tensors = list(record.tensors())
    packed = torch.cat([tensor.double().flatten() for tensor in tensors])
    anchor = packed.new_empty(0).requires_grad_()
    total = _SumValues.apply(group, packed, anchor, *parameters)
    sums = iter(total.split([tensor.numel() for tensor in tensors]))
    return record.map(lambda tensor: next(sums).view_as(tensor).to(tensor.dtype))


class _SumValues(torch.autograd.Function):
    """The sum over ranks; backward adds up the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, group: Any, values: Tensor, *leaves: Tensor) -> Tensor:
        ctx.group, ctx.num_leaves = group, len(leaves)
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return None, total, *[None] * ctx.num_leaves


class _SumGradients(torch.autograd.Function):
    """The identity; backward adds up the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, group: Any, lse: Tensor, out: Tensor, *leaves: Tensor) -> tuple:
        ctx.group, ctx.num_leaves = group, len(leaves)
        return lse.view_as(lse), out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_lse: Tensor, grad_out: Tensor) -> tuple:
        packed = torch.cat([grad_lse[..., None], grad_out], dim=-1)
        dist.all_reduce(packed, group=ctx.group)
        return None, packed[..., 0], packed[..., 1:], *[None] * ctx.num_leaves


def _all_gather(
    values: Shaped[Tensor, "*shape"], group: dist.ProcessGroup | None
) -> Shaped[Tensor, "ranks *shape"]:
    gathered = values.new_empty(dist.get_world_size(group), *values.shape)
    dist.all_gather(list(gathered), values.contiguous(), group=group)
    return gathered


def _rank(group: dist.ProcessGroup | None) -> int:
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "all_merge needs a process group: start the processes with "
            "`torchrun --nproc-per-node N script.py` and call "
            "torch.distributed.init_process_group() in each"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise InputError(f"rank {dist.get_rank()} is not in the group that all_merge was given")
    return rank
