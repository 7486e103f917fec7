"""Where the loop over time is and what it runs over."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.compatibility.case import WIDTH, Group
from tests.compatibility.neurons import Net, lif

loops = Group("loops")
CASES = loops.cases


@loops(neurons=2)
class TimeOuter(Net):
    """One loop over time around all layers."""

    def forward(self, x: Tensor) -> Tensor:
        v1 = torch.zeros(x.shape[1], WIDTH)
        v2 = torch.zeros(x.shape[1], WIDTH)
        out = []
        for t in range(x.shape[0]):
            v1, s = lif(v1, self.fc1(x[t]))
            v2, s = lif(v2, self.fc2(s))
            out.append(s)
        return torch.stack(out)


@loops(neurons=2)
class LayerOuter(Net):
    """Each layer has its own loop over time."""

    def neuron(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for t in range(x.size(0)):
            v, s = lif(v, x[t])
            out.append(s)
        return torch.stack(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.fc2(self.neuron(self.fc1(x))))
