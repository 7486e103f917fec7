"""Spikes that products keep as bits: the values, the gradients, and what is left in memory."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import snncc
from snncc.nn import ATan
from snncc.runtime import memory
from snncc.runtime.products import convolution, plain, spikes
from snncc.runtime.products import linear as products
from snncc.runtime.products import outer as outer_products
from snncc.runtime.products.density import density
from snncc.runtime.products.outer import outer_product
from snncc.runtime.products.skipping import Costs
from snncc.runtime.products.spikes import BitRows, Kept, Spikes

Layer = Callable[..., Tensor]


def bits(*shape: int, rate: float = 0.3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random spikes."""
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.rand(shape, generator=generator) < rate).to(dtype)


def _packed(x: Tensor) -> tuple[Tensor, Kept]:
    words = spikes.pack(x)
    return words, Kept(x.shape, x.stride(), x.dtype, None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack inputs of any size."""
    monkeypatch.setattr(memory, "SMALLEST", 1)
    monkeypatch.setattr(spikes, "SMALLEST", 1)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
def test_unpacked_is_what_was_packed(
    sizes: list[int], random: Any, dtype: torch.dtype, by_torch: bool
) -> None:
    """Any sizes, and any order of the axes in memory, by the kernels and by operators of torch."""
    order = random.sample(range(len(sizes)), len(sizes))
    x = bits(*(sizes[i] for i in order), dtype=dtype).permute(
        [order.index(i) for i in range(len(sizes))]
    )
    words, kept = _packed(x)
    if by_torch:
        flat = x.as_strided((x.numel(),), (1,))
        assert torch.equal(spikes._pack_by_torch(flat), words)
        assert torch.equal(spikes._unpack_by_torch(words, x.numel(), dtype), flat)

    actual = spikes.unpack(words, kept)

    assert torch.equal(actual, x)
    assert actual.stride() == x.stride()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 90), st.integers(1, 140), st.integers(1, 140), st.floats(0.0, 1.0))
def test_products_of_bits_are_those_of_values(
    rows: int, inner: int, columns: int, rate: float
) -> None:
    """The kernel reads bits of rows that begin anywhere in a word; the same sums, bit by bit."""
    x, g = bits(rows, inner, rate=rate), torch.randn(rows, columns)
    packed = BitRows(*_packed(x), density(x))

    assert torch.equal(packed.values(), x)
    expected, actual = (outer_products._skipping(each, g) for each in (x, packed))
    assert expected is not None
    assert actual is not None
    assert torch.equal(actual, expected)


def test_the_sparse_factor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits may be it, or the other factor; infinities are not lost."""
    monkeypatch.setattr(outer_products, "_COSTS", Costs(1.0, 0, 0))
    x = bits(50, 24)
    packed = BitRows(*_packed(x), density(x))
    infinite = torch.randn(50, 30)
    infinite[3, 4] = float("inf")
    with torch.no_grad():
        for g in (torch.randn(50, 30), bits(50, 30, rate=0.02), infinite):
            actual, expected = (outer_product(g, right) for right in (packed, x))
            torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


LAYERS: dict[str, tuple[Layer, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": (products.linear, (6, 5, 24), (7, 24), {}),
    "linear of torch": (plain.linear, (6, 5, 24), (7, 24), {}),
    "skipping": (convolution.convolve, (6, 16, 9, 9), (16, 16, 3, 3), {"padding": 1}),
    "strided": (convolution.convolve, (6, 16, 9, 9), (16, 16, 3, 3), {"stride": 2}),
    "grouped": (convolution.convolve, (6, 16, 9, 9), (16, 8, 3, 3), {"groups": 2}),
    "one dimension": (convolution.convolve, (6, 16, 64), (16, 16, 3), {"dilation": (2,)}),
    "of torch": (plain.conv2d, (6, 4, 9, 9), (5, 4, 3, 3), {"stride": (2, 1), "padding": (1, 2)}),
    "three dimensions": (plain.conv3d, (2, 4, 5, 5, 5), (5, 4, 2, 2, 2), {}),
    "by name": (plain.conv2d, (6, 4, 9, 9), (5, 4, 3, 3), {"padding": "same"}),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (1, 2)], ids=str)
def test_gradients_do_not_change(small: None, name: str, frozen: tuple[int, ...]) -> None:
    """With bits kept each gradient has the bits that it has with values kept."""
    layer, sizes, weights, options = LAYERS[name]
    torch.manual_seed(0)
    given = [bits(*sizes), torch.randn(weights), torch.randn(weights[0])]
    results = []
    for keeps in (True, False):
        own = [t.clone().requires_grad_(i not in frozen) for i, t in enumerate(given)]
        y = layer(*own, **options, spikes=Spikes(own[0]) if keeps else None)
        torch.manual_seed(1)
        y.backward(torch.randn_like(y))
        results.append([y, *(t.grad for t in own)])

    for actual, expected in zip(*results, strict=True):
        assert (actual is None) == (expected is None)
        assert actual is None or torch.equal(actual, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_of_a_gradient_comes_to_the_spikes(small: None, name: str) -> None:
    """That of the weight depends on the input, whose values are gone."""
    layer, sizes, weights, options = LAYERS[name]
    torch.manual_seed(0)
    given = [bits(*sizes), torch.randn(weights), torch.randn(weights[0])]
    results = []
    for keeps in (True, False):
        own = [t.clone().requires_grad_() for t in given]
        y = layer(*own, **options, spikes=Spikes(own[0]) if keeps else None)
        grads = torch.autograd.grad((y * y).sum(), own[:2], create_graph=True)
        loss = sum((g * g.detach()).sum() for g in grads)
        results.append(torch.autograd.grad(loss, own))

    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


class Net(nn.Module):
    """Two layers read the spikes of a hidden one; a third its spikes over two steps at a time."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first, self.left, self.right = (
            nn.Linear(9, width),
            nn.Linear(width, 8),
            nn.Linear(width, 8),
        )
        self.spike = ATan(2.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.zeros(x.shape[1], self.first.out_features)
        total, fired = torch.zeros(x.shape[1], 8), []
        for x_t in x:
            v = 0.8 * v + self.first(x_t)
            s = self.spike(v - 0.3)
            v = v - 0.3 * s
            total = total + self.left(s) * self.right(s).sigmoid()
            fired.append(s)
        return total, torch.stack(fired)


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    """Change nothing."""
    yield


@pytest.mark.parametrize(
    "way", ["plain", "hooks", "offloaded", "checkpoint", "reentrant", "online"]
)
def test_networks_train_as_before(small: None, way: str) -> None:
    """Also where autograd hands what is kept to hooks, or where it is computed twice."""
    results = []
    for keep in ("bits", "values"):
        torch.manual_seed(0)
        model = Net()
        mode = "online" if way == "online" else "fused"
        fast = snncc.compile(model, keep_spikes=keep, mode=mode)
        run: Callable[[Tensor], Any] = fast
        if way in ("checkpoint", "reentrant"):
            run = partial(_checkpointed, fast, way == "reentrant")
        hooks = {"hooks": _copying, "offloaded": save_on_cpu}.get(way, nothing)
        with hooks():
            results.append(_changed_later(run, model))

    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


def _checkpointed(fast: Any, reentrant: bool, x: Tensor) -> Any:
    return checkpoint(fast, x.requires_grad_(), use_reentrant=reentrant)


def _copying() -> Any:
    return saved_tensors_hooks(lambda x: x.clone(), lambda x: x.clone())


def _changed_later(run: Callable[[Tensor], Any], model: Net) -> list[Tensor]:
    torch.manual_seed(2)
    total, fired = run(torch.randn(5, 6, 9))
    loss = (total * torch.randn_like(total)).sum() + (fired * torch.randn_like(fired)).sum()
    loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def saved_by(run: Callable[[], object]) -> list[Tensor]:
    """Return what autograd keeps of a call."""
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    with saved_tensors_hooks(note, lambda x: x):
        run()
    return found


@pytest.mark.parametrize("frozen", [False, True])
def test_spikes_are_packed_once_and_not_kept(small: None, frozen: bool) -> None:
    """Two layers share the bits of one neuron; where weights are frozen nothing is kept."""
    model = Net()
    fast = snncc.compile(model, keep_spikes="bits")
    for layer in (model.left, model.right):
        layer.weight.requires_grad_(not frozen)
    results: list[Any] = []
    saved = saved_by(lambda: results.append(fast(torch.randn(5, 6, 9))))

    _, fired = results[0]
    assert all(x.data_ptr() != fired.data_ptr() for x in saved)
    words = [x for x in saved if x.dtype is torch.int64]
    assert len(words) == (0 if frozen else 2)
    assert len({x.data_ptr() for x in words}) == (0 if frozen else 1)
    assert sum(x.nbytes for x in words[:1]) == (0 if frozen else -(-5 * 6 * 24 // 64) * 8)


class AllSteps(nn.Module):
    """Layers that take all steps at once, in time order and batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 4, 3)
        self.last = nn.Linear(64, 5)
        self.spike = ATan(2.0)

    def forward(self, x: Tensor) -> Tensor:
        currents = self.first(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        y = self.second(self.fire(currents).flatten(0, 1)).unflatten(0, x.shape[:2])
        y = self.fire(y).transpose(0, 1)
        return self.last(y.flatten(2))

    def fire(self, currents: Tensor) -> Tensor:
        v, fired = torch.zeros_like(currents[0]), []
        for current in currents:
            v = 0.8 * v + current
            fired.append(self.spike(v - 0.1))
            v = v - 0.1 * fired[-1]
        return torch.stack(fired)


def test_layers_that_are_called_once_keep_bits(small: None) -> None:
    """What the plan says is kept as bits is kept as bits, whatever order its memory has."""
    results, counts = [], []
    for keep in ("bits", "values"):
        torch.manual_seed(0)
        model = AllSteps()
        fast = snncc.compile(model, keep_spikes=keep)
        found: list[Tensor] = []
        saved = saved_by(partial(_collect, found, fast, torch.randn(4, 3, 2, 6, 6)))
        found[0].square().sum().backward()
        results.append([found[0], *(p.grad for p in model.parameters())])
        says = [x.kept_bytes for x in fast.plans[0].layers].count(0.125)
        counts.append((says, sum(x.dtype is torch.int64 for x in saved)))

    assert counts == [(2, 2), (0, 0)]
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


def _collect(found: list[Tensor], run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    found.append(run(x))


def test_autograd_alone_keeps_bits(small: None) -> None:
    """What hooks hand on is all that is left, so that a checkpoint frees them."""
    found: list[weakref.ref[Tensor]] = []

    def copy(x: Tensor) -> Tensor:
        if x.dtype is torch.int64:
            found.append(weakref.ref(x))
        return x.clone()

    with saved_tensors_hooks(copy, lambda x: x):
        total, _ = snncc.compile(Net(), keep_spikes="bits")(torch.randn(5, 6, 9))

    assert total.grad_fn is not None
    assert [x() for x in found] == [None, None]


def test_spikes_may_change_after_the_call(small: None) -> None:
    """Bits are of what the layers read; values that changed cannot be used, says torch."""
    for keep, refused in (("bits", False), ("values", True)):
        model = Net()
        total, fired = snncc.compile(model, keep_spikes=keep)(torch.randn(5, 6, 9))
        with torch.no_grad():
            fired.zero_()
        with pytest.raises(RuntimeError, match="inplace") if refused else nothing():
            total.sum().backward()


def test_nothing_is_packed_without_gradients(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference has no use for bits."""
    monkeypatch.setattr(spikes, "pack", lambda x: pytest.fail("packed"))
    with torch.no_grad():
        snncc.compile(Net(), keep_spikes="bits")(torch.randn(5, 6, 9))
