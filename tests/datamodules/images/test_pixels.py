"""Images become tasks: which pixels, where they lie, and what they are worth."""

import pytest
import torch
from helpers import assert_close, assert_same_record
from torch import Tensor

from datamodules.images.pixels import PixelDraw, images_to_task, pixel_order
from npbench import Task

CORNERS = {(0, 0): (-1, -1), (0, -1): (-1, 1), (-1, 0): (1, -1), (-1, -1): (1, 1)}


def draw(context: list[int], target: list[int], seed: int = 0, **noise: Tensor) -> PixelDraw:
    key = torch.randint(2**63 - 1, [len(context)], generator=torch.Generator().manual_seed(seed))
    return PixelDraw(torch.tensor(context), torch.tensor(target), key, **noise)


def random_images(batch: int = 3, channels: int = 3, height: int = 5, width: int = 7) -> Tensor:
    return torch.randint(256, (batch, channels, height, width), dtype=torch.uint8)


def all_points(task: Task) -> tuple[Tensor, Tensor]:
    """The points of tasks without masks, context and targets together."""
    return torch.cat([task.xc, task.xt], dim=1), torch.cat([task.yc, task.yt], dim=1)


def pixels_of(x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Row and column, by the definition of the coordinates turned round."""
    row, column = ((x + 1) / 2 * torch.tensor([height - 1.0, width - 1.0])).unbind(-1)
    assert_close(row, row.round())
    assert_close(column, column.round())
    return row.round().long(), column.round().long()


def test_the_corners_are_at_one_and_minus_one_rows_first() -> None:
    """A value that tells the corner: (row, column) of it, and y = value / 255 − 1/2."""
    images = torch.full((1, 1, 4, 6), 100, dtype=torch.uint8)
    for value, (row, column) in enumerate(CORNERS):
        images[0, 0, row, column] = value
    x, y = all_points(images_to_task(images, draw([10], [14])))
    for value, corner in enumerate(CORNERS.values()):
        (place,) = torch.nonzero(torch.isclose(y[0, :, 0], torch.tensor(value / 255 - 0.5)))
        assert x[0, place].flatten().tolist() == list(corner)


def test_rows_and_columns_are_evenly_spaced() -> None:
    x, _ = all_points(images_to_task(random_images(height=5, width=3), draw([7] * 3, [8] * 3)))
    for task in x:
        assert_close(task[:, 0].unique(), torch.tensor([-1, -0.5, 0, 0.5, 1]))
        assert_close(task[:, 1].unique(), torch.tensor([-1.0, 0, 1]))


def test_values_are_those_of_the_pixels_less_a_half() -> None:
    images = random_images()
    task = images_to_task(images, draw([10] * 3, [12] * 3))
    assert task.yc.dtype == task.xc.dtype == torch.float32
    for x, y in ((task.xc, task.yc), (task.xt, task.yt)):
        row, column = pixels_of(x, 5, 7)
        for place, image in enumerate(images):
            expected = image[:, row[place], column[place]].T / 255 - 0.5
            assert torch.equal(y[place], expected)
    black_and_white = torch.tensor([[0, 255]], dtype=torch.uint8).reshape(1, 1, 1, 2)
    _, y = all_points(images_to_task(black_and_white, draw([1], [1])))
    assert y.flatten().sort().values.tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("sizes", [(1, 34), (3, 4), (20, 15)])
def test_no_pixel_is_drawn_twice(sizes: tuple[int, int]) -> None:
    draws = draw([sizes[0]] * 50, [sizes[1]] * 50)
    x, _ = all_points(images_to_task(random_images(batch=50), draws))
    for task in x:
        assert len(task.unique(dim=0)) == sum(sizes)


def test_all_targets_are_all_pixels_that_are_not_in_the_context() -> None:
    x, _ = all_points(images_to_task(random_images(), draw([10] * 3, [25] * 3)))
    assert len(x[0].unique(dim=0)) == 35


def test_orders_are_uniform_over_permutations() -> None:
    """All 24 of four pixels, within 5 standard errors."""
    number = 24_000
    key = torch.randint(2**63 - 1, [number])
    order = pixel_order(key, num_pixels=4, num_points=4)
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - number / 24).abs() < 5 * (number / 24) ** 0.5).all()


def test_pixels_are_drawn_independently_of_each_other() -> None:
    """Of two among 36 pixels: each first as often, and each pair, even for neighbouring keys."""
    number = 36 * 35 * 60
    order = pixel_order(torch.arange(number), num_pixels=36, num_points=2)
    first = order[:, 0].bincount(minlength=36)
    assert ((first - number / 36).abs() < 5 * (number / 36) ** 0.5).all()
    pairs = (order[:, 0] * 36 + order[:, 1]).bincount(minlength=36 * 36).reshape(36, 36)
    assert not pairs.diagonal().any()
    others = pairs[~torch.eye(36, dtype=torch.bool)]
    assert ((others - 60).abs() < 6 * 60**0.5).all()


def test_the_order_of_pixels_is_that_of_splitmix64() -> None:
    """By Python's integers, so that it stays the same on every machine."""
    wrap = 2**64 - 1

    def score(key: int, pixel: int) -> int:
        z = key + pixel * 0x9E3779B97F4A7C15 & wrap
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & wrap
        z = (z ^ z >> 27) * 0x94D049BB133111EB & wrap
        z ^= z >> 31
        return z - 2**64 if z >= 2**63 else z

    keys = [0, 1, 123456789, 2**63 - 2]
    orders = pixel_order(torch.tensor(keys), num_pixels=50, num_points=50).tolist()
    for key, order in zip(keys, orders):
        assert order == sorted(range(50), key=lambda pixel: score(key, pixel))


def test_a_task_does_not_depend_on_its_batch() -> None:
    images, draws = random_images(batch=6), draw([9] * 6, [4] * 6)
    together = images_to_task(images, draws)
    for place in range(6):
        row = slice(place, place + 1)
        alone = PixelDraw(draws.num_context[row], draws.num_target[row], draws.key[row])
        assert_same_record(
            images_to_task(images[row], alone), together.map(lambda tensor, row=row: tensor[row])
        )


def test_a_larger_context_holds_the_smaller_one() -> None:
    images = random_images(batch=1)
    small, large = (images_to_task(images, draw([n], [35 - n])) for n in (4, 20))
    assert torch.equal(large.xc[:, :4], small.xc)


def test_uneven_tasks_have_masks_and_zeros_behind() -> None:
    images = random_images()
    even, uneven = draw([9] * 3, [8] * 3), draw([3, 9, 5], [8, 2, 6])
    task, whole = images_to_task(images, uneven), images_to_task(images, even)
    assert task.context_mask.sum(-1).tolist() == [3, 9, 5]
    assert task.target_mask.sum(-1).tolist() == [8, 2, 6]
    for mask, x, y in (
        (task.context_mask, task.xc, task.yc),
        (task.target_mask, task.xt, task.yt),
    ):
        assert not x[~mask].any()
        assert not y[~mask].any()
    for place, (n, m) in enumerate(zip([3, 9, 5], [8, 2, 6])):
        assert torch.equal(task.xc[place, :n], whole.xc[place, :n])
        together = torch.cat([whole.xc[place], whole.xt[place]])
        assert torch.equal(task.xt[place, :m], together[n : n + m])
    assert whole.context_mask is None
    assert whole.target_mask is None


def test_stacked_draws_give_the_tasks_of_each() -> None:
    images = random_images()
    draws = [
        draw([n], [m], seed, noise=torch.randn(1, 12, 3))
        for seed, (n, m) in enumerate([(4, 6), (9, 2), (3, 3)])
    ]
    together = images_to_task(images, PixelDraw.stack(draws))
    for place, alone in enumerate(draws):
        task = images_to_task(images[[place]], alone)
        n, m = task.xc.shape[1], task.xt.shape[1]
        for name, size in {"xc": n, "yc": n, "xt": m, "yt": m}.items():
            values = getattr(together, name)[[place]]
            assert torch.equal(values[:, :size], getattr(task, name))
            assert not values[:, size:].any()


def test_noise_is_added_to_the_values() -> None:
    images, noise = random_images(), torch.randn(3, 20, 3, dtype=torch.float64)
    plain = images_to_task(images, draw([5] * 3, [6] * 3))
    noisy = images_to_task(images, draw([5] * 3, [6] * 3, noise=noise))
    assert torch.equal(noisy.xc, plain.xc)
    assert_close(noisy.yc, plain.yc + noise[:, :5].float())
    assert_close(noisy.yt, plain.yt + noise[:, 5:11].float())


def test_a_task_larger_than_its_image_is_refused() -> None:
    with pytest.raises(ValueError, match="a task of 36 points does not fit into 5×7 pixels"):
        images_to_task(random_images(), draw([30] * 3, [6] * 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_tasks() -> None:
    images = random_images(batch=8, height=64, width=64)
    draws = draw([3, 700, 5, 9, 90, 80, 70, 60], [80, 20, 3, 4, 5, 6, 7, 8])
    on_gpu = images_to_task(images.cuda(), draws)
    assert all(tensor.is_cuda for tensor in on_gpu.tensors())
    assert_same_record(on_gpu.to("cpu"), images_to_task(images, draws))
