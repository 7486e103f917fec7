"""Convolutions that skip the zeros of their input, where that is faster than the dense library.

Which of the two runs is decided at each call by the sizes and by the share of the input that is
not zero, counted on a sample.  The gradient of the input is dense: it is the library's, or that of
Winograd's method where the sizes allow it; so is the gradient of the weights where many are active.

Numerics: reassociated.  Zero times infinity is NaN, so where a weight or a cotangent is not finite,
the library runs.
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d

from snncc.codegen.base import FloatType
from snncc.codegen.c.convolution import ARRAYS, MOST_KINDS, SIZES, ConvolutionSpec, emit_convolution
from snncc.ir import sequence_ops
from snncc.runtime import memory
from snncc.runtime.binaries.cache import CACHE, Function
from snncc.runtime.launch import DTYPES
from snncc.runtime.products import plain, winograd
from snncc.runtime.products.density import density
from snncc.runtime.products.saved_input import SavedInput
from snncc.runtime.products.spikes import Packed, Spikes
from snncc.runtime.tracing import is_traced, refuse_batches

# Bytes of cotangents that stay in a second-level cache, and pixels that share weights in it.
_CACHED_BYTES = 512 * 1024
# Bytes of cotangents that all threads share in a last cache.
_SHARED_BYTES = 8 << 20
_GROUP_PIXELS = 1024
_MOST_ELEMENTS = 2**31 - 1
_MOST_INPUTS = 1 << 23  # each thread has a place for all of an image
# Fewer filters than this fill no row; fewer pixels do not pay for packing the weights.
_FEWEST_FILTERS = 16
_FEWEST_CHANNELS = 8
_FEWEST_PIXELS = 64

# What skipping zeros costs, in products of the dense library: for each product that is not skipped,
# input, output with its border, and weight.  Measured on two cores with AVX-512, 16 to 32 images
# and 1,600 small ones; forward and the gradient of the weights together.
_PRODUCT, _INPUT, _OUTPUT, _WEIGHT = 2.0, 40, 40, 60
# Above this share of active inputs, Winograd's method was seen to be faster than skipping zeros.
_MOST_ACTIVE = 0.2
_SHORT_ROW = 16  # a vector for each entry of a list: half as fast

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a convolution [images, channels, *size] by [filters, channels, *taps]."""

    images: int
    channels: int
    size: Pair
    filters: int
    taps: Pair
    stride: Pair
    padding: Pair

    @property
    def out(self) -> Pair:
        """The sizes of an output plane."""
        y, x = (
            (n + 2 * pad - taps) // stride + 1
            for n, taps, stride, pad in zip(
                self.size, self.taps, self.stride, self.padding, strict=True
            )
        )
        return y, x

    @property
    def bordered(self) -> int:
        """The pixels of an output plane with the border that the taps reach."""
        y, x = (
            (taps - 1) // stride + max(out, (n - 1 + pad) // stride + 1)
            for n, out, taps, stride, pad in zip(
                self.size, self.out, self.taps, self.stride, self.padding, strict=True
            )
        )
        return y * x

    @property
    def row(self) -> int:
        """Filters of one row of a kernel."""
        return 64 if self.filters > 32 else 32 if self.filters > 16 else 16

    def pays(self, density: float) -> bool:
        """Tell whether skipping zeros is faster than the library at a density of the input."""
        inputs = self.images * self.channels * math.prod(self.size)
        outputs = self.images * self.filters * self.bordered
        weights = self.filters * self.channels * math.prod(self.taps)
        dense = weights * self.images * math.prod(self.out)
        kept = density * dense * _PRODUCT * (2 if self.row == _SHORT_ROW else 1)
        return kept + _INPUT * inputs + _OUTPUT * outputs + _WEIGHT * weights < dense

    @property
    def transforms(self) -> bool:
        """Whether Winograd's method is faster than the library for gradients."""
        is_small = self.taps == (3, 3) and self.stride == (1, 1)
        sizes = (self.images, self.channels, self.filters)
        return is_small and winograd.pays(*sizes, self.size, self.out)

    @property
    def padded_filters(self) -> int:
        """The filters in whole rows."""
        return -(-self.filters // self.row) * self.row


def skipping(target: Any) -> Any:
    """Return what runs a convolution, over folded time or not, that may skip zeros."""
    return sequence_ops.Folded(convolve) if isinstance(target, sequence_ops.Folded) else convolve


def convolve(  # noqa: PLR0913 - the signature of torch
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    spikes: Spikes | None = None,
) -> Tensor:
    """Apply the convolution of `torch.nn.functional`, skipping zeros where most of x is zero.

    ``spikes`` says that x is 0 or 1: bits of it are kept for the gradient of the weight.
    """
    if weight.dim() == 3:
        if x.dim() != 3 or isinstance(padding, str):
            return conv1d(x, weight, bias, stride, padding, dilation, groups)
        options = ((1, _pair(stride)[0]), (0, _pair(padding)[0]), (1, _pair(dilation)[0]))
        planes = (x.unsqueeze(2), weight.unsqueeze(2), bias)
        return convolve(*planes, *options, groups, spikes=spikes).squeeze(2)
    shape = _shape_of(x, weight, (stride, padding, dilation, groups))
    if bias is not None and (bias.dtype != x.dtype or bias.shape != weight.shape[:1]):
        shape = None  # an error, in torch's words
    if shape is None:
        return plain.conv2d(x, weight, bias, stride, padding, dilation, groups, spikes=spikes)
    active = density(x)
    skips = shape.pays(active) and is_finite(weight)
    way = _Way(shape, skips, skips and (active < _MOST_ACTIVE or not shape.transforms))
    tensors = (x, weight) if bias is None else (x, weight, bias)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if differentiable and (skips or shape.transforms or spikes is not None):
        kept = None if spikes is None else spikes.keep(x, weight)
        return _Convolution.apply(x, weight, bias, way, kept)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(x, weight, bias, way)


def is_finite(x: Tensor) -> bool:
    """Tell whether all values are finite, and so is their sum."""
    return math.isfinite(x.detach().sum().item())


def _shape_of(x: Tensor, weight: Tensor, options: tuple[Any, ...]) -> Shape | None:
    """Return the sizes of a convolution that there are kernels for, or None."""
    stride, padding, dilation, groups = options
    if x.dim() != 4 or weight.dim() != 4 or isinstance(padding, str):
        return None
    if groups != 1 or _pair(dilation) != (1, 1) or weight.shape[1] != x.shape[1]:
        return None
    if not (x.is_cpu and x.is_contiguous() and x.dtype == weight.dtype in DTYPES):
        return None
    if x.is_neg() or weight.is_neg():
        return None
    if is_traced((x, weight)) or torch.is_autocast_enabled("cpu"):
        return None
    images, channels, *size = x.shape
    filters, _, *taps = weight.shape
    sizes = (_pair(size), filters, _pair(taps), _pair(stride), _pair(padding))
    shape = Shape(images, channels, *sizes)
    return shape if _is_served(shape) else None


def _pair(value: Any) -> Pair:
    first, *rest = value if isinstance(value, tuple | list | torch.Size) else (value, value)
    return int(first), int(rest[0]) if rest else int(first)


def _is_served(shape: Shape) -> bool:
    """Tell whether kernels can count on these sizes, and have enough to do."""
    pixels, threads = math.prod(shape.out), torch.get_num_threads()
    if min(shape.out) < 1 or math.prod(shape.stride) > MOST_KINDS or min(shape.padding) < 0:
        return False
    if shape.filters < _FEWEST_FILTERS or shape.channels < _FEWEST_CHANNELS:
        return False
    if shape.images < threads or shape.images * pixels < _FEWEST_PIXELS:
        return False
    weights = (shape.channels * math.prod(shape.taps) + shape.size[1]) * shape.row
    inputs = _forward_group(shape, threads) * shape.channels * math.prod(shape.size)
    cotangents = _gradient_group(shape) * shape.bordered * shape.padded_filters
    return max(weights, cotangents) < _MOST_ELEMENTS and inputs < _MOST_INPUTS


def _forward_group(shape: Shape, threads: int) -> int:
    """Return how many images share the weights that are in a cache."""
    fitting = _GROUP_PIXELS // math.prod(shape.size)
    return max(1, min(fitting, -(-shape.images // threads)))


def _gradient_group(shape: Shape) -> int:
    """Return how many images' cotangents fit into a cache."""
    size = shape.bordered * shape.padded_filters * 4
    return max(1, min(shape.images, _CACHED_BYTES // size))


@dataclass(frozen=True, slots=True)
class _Way:
    """How a convolution runs.

    Attributes:
        shape: The sizes.
        skips: Whether it skips zeros.
        skips_back: Whether the gradient of the weights does.
    """

    shape: Shape
    skips: bool
    skips_back: bool


class _Convolution(torch.autograd.Function):
    """The convolution and its gradients."""

    @staticmethod
    def forward(  # noqa: PLR0913 - what autograd is given
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, way: _Way, packed: Packed | None
    ) -> Tensor:
        ctx.way, ctx.input = way, SavedInput.of(ctx, x, weight, packed)
        return _forward(x, weight, bias, way)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batches((cotangent,))
        weight, saved = ctx.saved_tensors
        way, shape = ctx.way, ctx.way.shape
        for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
        # It may be differentiated again, or be of a kind that there is no kernel for.
        own = not (torch.is_grad_enabled() or is_traced((cotangent, weight)))
        of_x = of_weight = None
        x = ctx.input.values(saved)
        if own and x is not None:
            of_weight = _own_weight_gradient(x, cotangent, way)
            if of_weight is not None and ctx.input.kept is not None:
                x = None  # the gradient of the input takes its place in memory
        if own and for_x and shape.transforms:
            filters = weight.contiguous()
            of_x = winograd.input_gradient(
                cotangent.contiguous(), filters, shape.size, shape.padding
            )
        left = [for_x and of_x is None, for_weight and of_weight is None, for_bias]
        grads: tuple[Tensor | None, ...] = (None, None, None)
        if any(left):
            x = ctx.input.like(weight) if x is None else x
            grads = torch.ops.aten.convolution_backward(
                cotangent, x, weight, [shape.filters], shape.stride, shape.padding, [1, 1], False,
                [0, 0], 1, left,
            )  # fmt: skip
        of_x, of_weight = grads[0] if left[0] else of_x, grads[1] if left[1] else of_weight
        return of_x, of_weight, grads[2], None, None


def _own_weight_gradient(x: Tensor, cotangent: Tensor, way: _Way) -> Tensor | None:
    """Return the gradient of the weights by a kernel, where there is one and it is finite."""
    if way.skips_back and is_finite(cotangent):
        return _weight_gradient(x, cotangent.contiguous(), way.shape)
    if way.shape.transforms:
        return winograd.weight_gradient(cotangent.contiguous(), x, way.shape.padding)
    return None


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, way: _Way) -> Tensor:
    shape = way.shape
    if not way.skips:
        return conv2d(x, weight, bias, shape.stride, shape.padding)
    threads = torch.get_num_threads()
    group = _forward_group(shape, threads)
    pixels = math.prod(shape.size)
    sums = group * math.prod(shape.out) * shape.row * x.itemsize
    entries = group * pixels * shape.channels * 2 * x.itemsize
    own = sums + entries + ((group + 1) * pixels + 1) * 4
    packed = shape.padded_filters * shape.channels * math.prod(shape.taps)
    result = memory.empty((shape.images, shape.filters, *shape.out), x.dtype)
    launch = _Launch(shape, x.dtype, packed, (group, group), own, backward=False)
    launch.run(x, weight.contiguous(), result)
    return result if bias is None else result.add_(bias.view(-1, 1, 1))


def _weight_gradient(x: Tensor, cotangent: Tensor, shape: Shape) -> Tensor:
    group = _gradient_group(shape)
    pixels = math.prod(shape.size)
    own = math.prod(shape.stride) * group * pixels * 2 * x.itemsize + 2 * pixels * 4
    weights = shape.channels * math.prod(shape.taps)
    cotangents = shape.bordered * shape.padded_filters
    groups = max(1, _SHARED_BYTES // (group * cotangents * x.itemsize))
    chunk = min(shape.images, groups * group)
    packed = chunk * cotangents + weights * shape.padded_filters
    result = memory.empty((shape.filters, shape.channels, *shape.taps), x.dtype)
    launch = _Launch(shape, x.dtype, packed, (group, chunk), own, backward=True)
    launch.run(x, result, cotangent)
    return result


@dataclass(frozen=True, slots=True)
class _Launch:
    """A call of a kernel, and the memory that it works in.

    Attributes:
        shape: The sizes.
        dtype: The working type.
        packed: Elements that all threads share.
        group: Images that a thread takes at a time, and that all threads share.
        thread_bytes: What each thread has of its own.
        backward: Whether it is the gradient of the weights.
    """

    shape: Shape
    dtype: torch.dtype
    packed: int
    group: Pair
    thread_bytes: int
    backward: bool

    def run(self, x: Tensor, weight: Tensor, output: Tensor) -> None:
        """Call the kernel."""
        shape, threads = self.shape, torch.get_num_threads()
        own = -(-self.thread_bytes // 64) * 64
        # At least what the pool serves: small buffers would fault in their pages each time.
        bytes_ = max(self.packed * self.dtype.itemsize, memory.SMALLEST)
        packed = memory.POOL.buffer(bytes_, self.dtype)
        work = memory.POOL.buffer(max(threads * own, memory.SMALLEST), torch.uint8)
        sizes = (
            shape.images, shape.channels, *shape.size, shape.filters, *shape.taps, *shape.out,
            *shape.stride, *shape.padding, threads, *self.group, own,
        )  # fmt: skip
        addresses = [t.data_ptr() for t in (x, weight, output, packed, work)]
        _kernel(self.dtype, shape.row, self.backward)(_PACK(*sizes, *addresses))


_PACK = struct.Struct(f"{len(SIZES) + len(ARRAYS)}q").pack


@functools.cache
def _kernel(dtype: torch.dtype, row: int, backward: bool) -> Function:
    kind = FloatType.FLOAT64 if dtype is torch.float64 else FloatType.FLOAT32
    return CACHE.load(emit_convolution(ConvolutionSpec(kind, row, backward)))
