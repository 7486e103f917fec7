"""A norm that updates copies of its running statistics leaves the originals alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snncc


class Norm(nn.Module):
    """Updates copies of the statistics, and writes them back never, at the end, or at each step."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.written = written

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.norm.running_mean.clone(), self.norm.running_var.clone()
        v, out = torch.zeros_like(x[0]), []
        for x_t in x:
            if self.written == "at each step":
                mean, var = self.norm.running_mean.clone(), self.norm.running_var.clone()
            v = 0.5 * v + F.batch_norm(x_t, mean, var, None, None, True, 0.1, 1e-5)
            if self.written == "at each step":
                self.norm.running_mean.copy_(mean)
                self.norm.running_var.copy_(var)
            out.append(v)
        if self.written == "at the end":
            self.norm.running_mean.copy_(mean)
            self.norm.running_var.copy_(var)
        return torch.stack(out)


@pytest.mark.parametrize("written", ["never", "at the end", "at each step"])
def test_statistics(written: str) -> None:
    """Results and statistics are those of the serial code, call after call."""
    model, twin = Norm(written), Norm(written)
    fast = snncc.compile(twin, fallback="serial")
    for _ in range(2):
        x = torch.randn(6, 3, 4)

        assert torch.equal(model(x), fast(x))
        assert torch.equal(model.norm.running_mean, twin.norm.running_mean)
        assert torch.equal(model.norm.running_var, twin.norm.running_var)


PARTS: dict[str, tuple[type[nn.Module], Callable[[Tensor], Tensor]]] = {
    "bound": (nn.BatchNorm2d, lambda x: x[..., : x.shape[-1] // 2]),
    "index": (nn.BatchNorm1d, lambda x: x[:, :, x.shape[2] // 2]),
    "index from the end": (nn.BatchNorm1d, lambda x: x[..., -(x.shape[-1] // 2)]),
    "index in a tensor": (nn.BatchNorm1d, lambda x: x[:, :, torch.tensor(1)]),
    "diagonal": (nn.BatchNorm1d, lambda x: x.diagonal(dim1=2, dim2=3)),
    "windows": (nn.BatchNorm2d, lambda x: x.unfold(3, x.shape[3] // 2, 1)[:, :, 0]),
    "index and bound": (nn.BatchNorm1d, lambda x: x[:, :, x.shape[2] - 1, : x.shape[3] - 1]),
}


class NormOfPart(nn.Module):
    """Normalises a part of each step, whose place is computed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        norm, self.part = PARTS[kind]
        self.norm = norm(4)

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros(()), []
        for x_t in x:
            v = 0.5 * v + self.norm(self.part(x_t))
            out.append(v)
        return torch.stack(out)


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("sizes", [(4, 3, 4, 5, 6), (3, 1, 4, 8, 8), (2, 2, 4, 2, 9)])
def test_statistics_of_a_part(kind: str, sizes: tuple[int, ...]) -> None:
    """Torch adds up a part in another order than a copy of it, so the part is no copy here."""
    model, twin = NormOfPart(kind), NormOfPart(kind)
    fast = snncc.compile(twin)
    for batch in (sizes[1], sizes[1] + 2):
        x = torch.randn(sizes[0], batch, *sizes[2:]) + 3.0

        assert torch.equal(model(x), fast(x))
        assert torch.equal(model.norm.running_var, twin.norm.running_var)
    assert all(plan.numerics is snncc.Numerics.BITWISE for plan in fast.plans)
    model.eval()
    twin.eval()
    stream = fast.stream(x)
    assert torch.allclose(model(x), torch.stack([stream(x_t) for x_t in x]))
