"""Our sampler against torch's own, wherever places lie."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own habit

from datamodules import grid_sampling
from datamodules.grid_sampling import sample, sample_with_labels


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reach", [0.9, 1.3, 50.0])
@pytest.mark.parametrize(("points", "exact"), [(7, 1 << 24), (1 << 16, 1 << 24), (1 << 16, 1)])
def test_the_same_as_torch(
    nearest: bool, channels: int, reach: float, points: int, exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_sampling, "_POINTS", points)
    monkeypatch.setattr(grid_sampling, "_EXACT", exact)
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, channels, 9, 7, 5, generator=generator)
    grid = (2 * torch.rand(2, 4, 6, 8, 3, generator=generator) - 1) * reach
    mode = "nearest" if nearest else "bilinear"
    expected = F.grid_sample(volume, grid, mode, "zeros", align_corners=False)
    torch.testing.assert_close(sample(volume, grid, nearest), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nearest", [False, True])
def test_a_grid_at_rest_changes_nothing(nearest: bool) -> None:
    volume = torch.randn(1, 1, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    grid = F.affine_grid(torch.eye(3, 4)[None], [1, 1, 6, 5, 4], align_corners=False)
    torch.testing.assert_close(sample(volume, grid, nearest), volume, rtol=1e-6, atol=2e-6)


def test_of_two_equally_near_voxels_torchs() -> None:
    # edges of powers of two, so that halves are exact
    volume = torch.arange(8.0).view(1, 1, 8, 1, 1)
    halves = (torch.arange(7) + 1) / 4 - 1
    grid = torch.stack([torch.zeros(7), torch.zeros(7), halves], -1).view(1, 7, 1, 1, 3)
    expected = F.grid_sample(volume, grid, "nearest", align_corners=False)
    assert torch.equal(sample(volume, grid, nearest=True), expected)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_volume_and_labels_at_once(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, 2, 6, 5, 4, generator=generator, dtype=kind)
    labels = torch.randint(0, 2, (2, 3, 6, 5, 4), generator=generator, dtype=torch.uint8)
    grid = ((2 * torch.rand(2, 7, 3, 3, 3, generator=generator) - 1) * 1.2).to(kind)
    moved, moved_labels = sample_with_labels(volume, labels, grid)
    assert torch.equal(moved, sample(volume, grid)) and torch.equal(moved_labels, sample(labels, grid, nearest=True))


def test_volumes_of_one_voxel_and_coordinates_first() -> None:
    volume = torch.tensor([3.0]).view(1, 1, 1, 1, 1)
    grid = torch.tensor([0.0, 0.0, 0.5]).view(3, 1, 1, 1, 1).movedim(0, -1)
    expected = F.grid_sample(volume, grid.contiguous(), align_corners=False)
    torch.testing.assert_close(sample(volume, grid), expected)


def test_other_number_types_are_torchs() -> None:
    volume = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    grid = torch.rand(1, 2, 2, 2, 3, dtype=torch.float64)
    assert torch.equal(sample(volume, grid), F.grid_sample(volume, grid, align_corners=False))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool, torch.float16])
def test_labels_keep_their_type(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (2, 1, 6, 5, 4), generator=generator)
    grid = (2 * torch.rand(2, 3, 3, 3, 3, generator=generator) - 1) * 1.2
    expected = F.grid_sample(labels.float(), grid, "nearest", align_corners=False)
    found = sample(labels.to(kind), grid, nearest=True)
    assert found.dtype == kind and torch.equal(found.float(), expected)
