"""When zeros are skipped: sizes and densities."""

from __future__ import annotations

import torch

from snncc.runtime.products.skipping import Costs


def test_skipping_pays_where_enough_is_skipped() -> None:
    """A sparse factor pays, a dense one does not; calls and narrow results cost too."""
    costs = Costs(kept=1.0, each=2, call=1e5)
    x = (torch.arange(200 * 100).reshape(200, 100) % 10 == 0).float()

    assert costs.pay(x, 64)
    assert costs.pay(torch.zeros(200, 100), 64)
    assert not costs.pay(torch.ones(200, 100), 64)
    assert not costs.pay(x[:5], 64)
    assert not costs.pay(x, 7)
    assert not costs.pay(x[:0], 64)
