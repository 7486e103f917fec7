"""A norm that updates copies of its running statistics leaves the originals alone."""

from __future__ import annotations

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
