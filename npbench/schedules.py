"""Learning rates as functions of the step."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from npbench.errors import InputError


class InverseSquareRoot(LRScheduler):
    r"""A linear rise over the first w steps, and $\sqrt{w / t}$ behind them.

    $$\mathrm{lr}_t = \mathrm{lr} \cdot \min(t / w, \sqrt{w / t}), \qquad t = 1, 2, …$$

    The optimiser's learning rate is the highest. Schedules that are written as
    $r \cdot \min(1, t / w) / \sqrt{\max(t, w)}$ have $\mathrm{lr} = r / \sqrt w$.

    Args:
        optimizer: whose learning rate it sets.
        warmup_steps: number w of steps.

    Source: Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, section 5.3.

    Example:
        >>> optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> schedule = InverseSquareRoot(optimizer, warmup_steps=100)
        >>> schedule.get_last_lr()
        [0.001]
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int) -> None:
        if warmup_steps < 1:
            raise InputError(f"warmup_steps={warmup_steps} must be 1 or more")
        self.warmup_steps = warmup_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """The rate of each group at the next step."""
        t, w = self.last_epoch + 1, self.warmup_steps
        return [lr * min(t / w, (w / t) ** 0.5) for lr in self.base_lrs]
