"""Which points a state has absorbed: what makes forgetting a certainty."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import UInt64
from torch import Tensor

from npbench.errors import InputError, NotAbsorbed
from npbench.models.contracts.points import Points

# Bytes of a digest: two points share one by chance once in 2¹²⁸ pairs.
_BYTES = 16


@dataclass(frozen=True, eq=False)
class Ledger:
    """The digests of the points that a state of one task has absorbed, as often as it has.

    A digest is the BLAKE2b hash of the values of a point, in the model's type: it tells whether a
    point is one that was absorbed, and nothing of any other. Whoever has the ledger can find out by
    trying whether a value that can be guessed was among them.

    Example:
        >>> points = Points(torch.randn(1, 5, 2), torch.randn(1, 5, 1))
        >>> ledger = Ledger.of(points)
        >>> len(ledger), len(ledger.without(points[:2]))
        (5, 3)
    """

    digests: UInt64[np.ndarray, "points 2"]

    @classmethod
    def of(cls, points: Points) -> "Ledger":
        """That of the real points of one task.

        Raises:
            InputError: if they are of several tasks.
        """
        if len(points.x) != 1:
            raise InputError(f"a ledger is of one task, and these points are of {len(points.x)}")
        # The sum makes 0 of −0, which compares equal.
        rows = points.xy[points.full_mask].detach().cpu() + 0.0
        width = rows.shape[1] * rows.element_size()
        data = rows.contiguous().view(torch.uint8).numpy().tobytes()
        digests = (
            blake2b(data[start : start + width], digest_size=_BYTES).digest()
            for start in range(0, len(data), width)
        )
        return cls(np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2))

    @classmethod
    def of_none(cls) -> "Ledger":
        """That of no points."""
        return cls(np.empty((0, 2), np.uint64))

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "Ledger":
        """The ledger that `to_tensor` has made one of."""
        return cls(tensor.numpy().view(np.uint64))

    def to_tensor(self) -> Tensor:
        """The digests as numbers that a safetensors file can hold."""
        return torch.from_numpy(self.digests.view(np.int64))

    def __len__(self) -> int:
        return len(self.digests)

    def merge(self, *others: "Ledger") -> "Ledger":
        """That of the points of all."""
        return Ledger(np.concatenate([self.digests, *(other.digests for other in others)]))

    def without(self, points: Points) -> "Ledger":
        """What is left when these points are taken out.

        Raises:
            NotAbsorbed: if one of them is not in the ledger, or not as often.
        """
        taken = Ledger.of(points).digests
        wanted = Counter(digest.tobytes() for digest in taken)
        kept = np.ones(len(self), bool)
        for index in np.flatnonzero(np.isin(self.digests[:, 0], taken[:, 0])).tolist():
            digest = self.digests[index].tobytes()
            if wanted[digest]:
                wanted[digest] -= 1
                kept[index] = False
        if missing := +wanted:
            point = next(i for i, digest in enumerate(taken) if digest.tobytes() in missing)
            among_all = int(points.full_mask[0].nonzero()[point])
            raise NotAbsorbed(among_all, int(missing.total()))
        return Ledger(self.digests[kept])


class Recorder:
    """Takes down the points of chunks on their way into a state."""

    def __init__(self) -> None:
        self._ledgers: list[Ledger] = []

    def passing(self, chunks: Iterable[Points]) -> Iterator[Points]:
        """The same chunks."""
        for points in chunks:
            self._ledgers.append(Ledger.of(points))
            yield points

    @property
    def ledger(self) -> Ledger:
        """That of all points that have passed."""
        return Ledger.of_none().merge(*self._ledgers)
