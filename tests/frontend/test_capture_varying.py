"""A size that depends on values may be computed with, and may not be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import snncc
from snncc.errors import CaptureError
from snncc.frontend.operators.varying import NAMES
from snncc.nn import ATan

spike = ATan()
Step = Callable[[Tensor, Tensor, Tensor], Any]

# Operators of torch that have such results and that no model spells.
UNSPELLED = {"_ctc_loss", "_unique", "_unique2", "unique_dim", "unique_dim_consecutive", "index"}


def looped(step: Step) -> Callable[[Tensor], Any]:
    """Return a model whose potential each step adds something to."""

    def model(x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        out = []
        for x_t in x:
            h = 0.5 * v + x_t
            s = spike(h - 1.0)
            v = h * (1.0 - s) + step(x_t, h, s)
            out.append(s)
        return torch.stack(out)

    return model


READS: dict[str, Step] = {
    "shape": lambda x, h, s: 0.1 * h[s.sum(1) > 1].shape[0],
    "size": lambda x, h, s: 0.1 * h[s.sum(1) > 1].size(0),
    "sizes": lambda x, h, s: 0.1 * len(h[s > 0].size()) + 0.1 * h[s > 0].size()[0],
    "len": lambda x, h, s: 0.1 * len(s.nonzero()),
    "numel": lambda x, h, s: 0.1 * torch.masked_select(h, s > 0).numel(),
    "derived": lambda x, h, s: 0.1 * (h[s > 0] * 2.0).view(-1, 1).expand(-1, 3).shape[0],
    "unbind": lambda x, h, s: sum(h[s.sum(1) > 1].unbind(0), torch.zeros_like(h)),
    "iteration": lambda x, h, s: sum(h[s.sum(1) > 1], torch.zeros_like(h)),
    "chunks": lambda x, h, s: 0.1 * len(h[s > 0].split(1)),
    "list": lambda x, h, s: 0.1 * len(h[s > 0].tolist()),
    "distinct": lambda x, h, s: 0.1 * torch.unique(s).numel(),
    "where": lambda x, h, s: 0.1 * torch.where(s > 0)[0].shape[0],
    "classes": lambda x, h, s: 0.1 * F.one_hot(s.sum(1).long()).shape[1],
    "repeats": lambda x, h, s: 0.1 * h.repeat_interleave(s.sum(1).long(), 0).shape[0],
    "bins": lambda x, h, s: 0.1 * torch.bincount(s.sum(1).long()).shape[0],
    "function": lambda x, h, s: 0.1 * spike(h[s > 0]).sum(),
}


@pytest.mark.parametrize("name", READS)
def test_reading_is_refused(name: str) -> None:
    """The error is about the line, whichever way the size is read."""
    fast = snncc.compile(looped(READS[name]))
    with pytest.raises(CaptureError, match="size that depends on the values") as caught:
        fast(torch.rand(6, 3, 5) * 2)

    assert caught.value.code == "capture.varying-size"
    assert "test_capture_varying.py" in str(caught.value)


COMPUTES: dict[str, Step] = {
    "mean": lambda x, h, s: 0.1 * h[s.sum(1) > 1].mean(0).nan_to_num(),
    "sum": lambda x, h, s: 0.1 * h[:, s.sum(0) > 1].sum(1, keepdim=True),
    "other size": lambda x, h, s: 0.1 * h[s.sum(1) > 1].sum(0) / h[s.sum(1) > 1].size(1),
    "shape of a sum": lambda x, h, s: 0.1 * h[s.sum(1) > 1].sum(0).shape[0],
    "classes": lambda x, h, s: 0.1 * F.one_hot(h.argmax(-1), h.shape[-1]).size(1),
    "product": lambda x, h, s: 0.1 * (h[s.sum(1) > 1].t() @ x[s.sum(1) > 1]).sum(0),
}


@pytest.mark.parametrize("name", COMPUTES)
def test_computing_is_right(name: str) -> None:
    """One program serves any number of selected elements."""
    model = looped(COMPUTES[name])
    fast = snncc.compile(model)
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.rand(6, 3, 5) * (0.5 + seed)

        assert torch.equal(fast(x), model(x))


def steps_of(x: Tensor, lengths: Tensor) -> dict[str, Callable[[], Any]]:
    """Return ways to say how many steps the longest sample of a padded batch has."""
    longest = lengths.max()
    return {
        "slice": lambda: x[:longest].shape[0],
        "narrow": lambda: x.narrow(0, 0, longest).shape[0],
        "arange": lambda: len(torch.arange(longest)),
        "mask": lambda: (torch.arange(longest)[:, None] < lengths).shape[0],
        "zeros": lambda: torch.zeros(longest, 3).shape[0],
        "full": lambda: torch.full((longest, 3), 0.5).shape[0],
        "expand": lambda: lengths[:1, None].expand(1, longest).shape[1],
        "split": lambda: len(x.split(lengths.tolist())),
        "tensor split": lambda: len(x.tensor_split(lengths)),
        "write": lambda: x.clone().__setitem__(slice(longest, None), 0.0) or len(x),
    }


@pytest.mark.parametrize("name", steps_of(torch.zeros(6, 3), torch.tensor([3, 2, 1])))
def test_lengths_do_not_steer_a_loop(name: str) -> None:
    """A number of steps that was seen once is not that of other lengths: each way is refused."""

    def model(x: Tensor, lengths: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for t in range(steps_of(x, lengths)[name]()):
            v = 0.5 * v + x[t]
            out.append(v)
        return torch.stack(out)

    lengths = torch.tensor([3, 2, 1])
    model(torch.rand(6, 3), lengths)
    with pytest.raises(CaptureError) as caught:
        snncc.compile(model)(torch.rand(6, 3), lengths)

    assert caught.value.code in ("capture.varying-size", "capture.value-left-torch")
    assert "test_capture_varying.py" in str(caught.value)


def test_what_lengths_select_may_be_computed_with() -> None:
    """Slices, ranges and fills whose sizes are tensors, as long as no loop runs over them."""

    def model(x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        v, out = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            v = 0.5 * v + x[t]
            out.append(v)
        y = torch.stack(out)[: lengths.max()]
        goes_on = torch.arange(lengths.max())[:, None] < lengths
        filled = torch.full((lengths.max(), 3), 0.5) + x.narrow(0, 0, lengths.max())
        return (y * goes_on).sum(0) / lengths, y, filled, y.size(1) * v

    fast = snncc.compile(model)
    for lengths in ([3, 2, 1], [6, 1, 1], [1, 5, 2]):
        x = torch.rand(6, 3)
        found = zip(fast(x, torch.tensor(lengths)), model(x, torch.tensor(lengths)), strict=True)

        assert all(torch.equal(a, b) for a, b in found)


def test_results_may_have_such_sizes() -> None:
    """A model may return what a mask selects."""

    def model(x: Tensor) -> tuple[Tensor, ...]:
        spikes = looped(lambda x, h, s: 0.0)(x)
        return spikes[spikes.sum((1, 2)) > 2], spikes.nonzero(), torch.unique(spikes.sum((0, 2)))

    fast = snncc.compile(model)
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.rand(6, 3, 5) * (0.5 + seed)

        assert all(torch.equal(a, b) for a, b in zip(fast(x), model(x), strict=True))


def test_torch_has_no_more_of_them() -> None:
    """Each operator that torch marks so is known."""
    found = set()
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        packet = getattr(torch.ops.aten, rest.split(".")[0], None) if space == "aten" else None
        for overload in packet.overloads() if packet is not None else ():
            if torch.Tag.dynamic_output_shape in getattr(packet, overload).tags:
                found.add(rest.split(".")[0])

    assert found - NAMES <= UNSPELLED
