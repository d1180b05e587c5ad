"""Figures of whether predicted probabilities are those of what came."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

# Half the width of the band that holds 95 of 100 counts, in standard deviations.
_STANDARD_NORMAL_95 = 1.96


def pit_figure(counts: Mapping[str, Int[Tensor, "bins"]]) -> Figure:
    r"""Histograms of probability integral transforms (`npbench.metrics.PITHistogram`).

    Each is a density, 1 everywhere if the predictions are calibrated. The grey band holds 95 of 100
    bins of a calibrated prediction whose n values are independent, $1 \pm 1.96 \sqrt{(b - 1) / n}$
    with b bins; values of one task are not, so that bins leave it more often.

    Args:
        counts: the values in each bin, by what the panel is called.

    Example:
        >>> import torch
        >>> figure = pit_figure({"test": torch.tensor([9, 11, 10, 10])})
        >>> figure.axes[0].get_title()
        'test: 40 values'
    """
    size = (0.4 + 4.2 * len(counts), 3.0)
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    axes = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axis, (name, values) in zip(axes, counts.items(), strict=True):
        bins, total = len(values), max(1, int(values.sum()))
        edges, band = np.linspace(0, 1, bins + 1), _STANDARD_NORMAL_95 * ((bins - 1) / total) ** 0.5
        axis.axhspan(1 - band, 1 + band, color="black", alpha=0.12, lw=0)
        axis.axhline(1, color="black", lw=0.8, ls=":")
        axis.stairs(values.cpu().numpy() * bins / total, edges, fill=True, alpha=0.6)
        axis.set_xlim(0, 1)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("predicted probability of less than the value", fontsize=8)
        axis.set_title(f"{name}: {total:,} values", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("density", fontsize=8)
    return figure
