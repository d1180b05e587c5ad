"""Models on a GPU that is not there: fake tensors know their device, and compute only shapes."""

from typing import Any

import pytest
import torch
from helpers import SIZES, random_points, random_task, small
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from npbench.models import NeuralProcess
from npbench.task import Task

every_model = pytest.mark.parametrize(
    "name", [*SIZES, "CMANPAND-lowrank", "LBANPND-lowrank", "TNPND-lowrank", "TNPKR-performer",
             "TNPKR-deep_kernel"]
)  # fmt: skip


class FakeDevices(FakeTensorMode):
    """A tensor that was left on the CPU is an error beside one on the GPU, as it is on a real one.

    A number that is asked for is 1, so that the values of a task count as finite.
    """

    def dispatch(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        return super().dispatch(func, types, args, kwargs)


def on_cuda(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="cuda")


def move(model: NeuralProcess) -> None:
    """Put all parameters and buffers on a GPU, as `model.cuda()` would; other tensors stay."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(on_cuda(parameter)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, on_cuda(buffer))


@pytest.mark.filterwarnings("ignore:a joint covariance was not positive definite")
@every_model
@pytest.mark.parametrize("masked", [False, True])
def test_a_task_on_the_gpu_is_answered_there(name: str, masked: bool) -> None:
    if masked and name == "ConvCNP":
        pytest.skip("the range of its grid is that of the real points, which fake ones do not have")
    model = small(name)
    task = random_task(2, 6, 5, dim_x=model.dim_x, dim_y=3, dtype=torch.float64)
    mask = torch.ones(2, 6, dtype=torch.bool) if masked else None
    with FakeDevices():
        move(model)
        x, y, xt, yt = (on_cuda(value) for value in (task.xc, task.yc, task.xt, task.yt))
        mask = None if mask is None else on_cuda(mask)
        # Its backward pass would need the context of a real GPU.
        assert model.loss(Task(x, y, xt, yt, mask)).device.type == "cuda"
        state = model.update(model.condition(x, y, mask, chunk_size=4), x, y)
        for values in model.marginals(state, xt):
            assert values.device.type == "cuda"


def test_a_tensor_that_was_left_on_the_cpu_is_found() -> None:
    model = small("CNP")
    x, y = random_points(2, 6, model.dim_x, dim_y=3, dtype=torch.float64)
    with FakeDevices():
        move(model)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and name.startswith("encoder"):
                layer.bias = nn.Parameter(torch.empty(layer.bias.shape, dtype=torch.float64))
        with pytest.raises(RuntimeError, match="device"):
            model.condition(on_cuda(x), on_cuda(y))
