"""The canonical operator of a torch function, and its arguments in normal form.

One table, one line an operator: ``target(signature): other spellings``.  A spelling is the name of
a function of torch or method of Tensor, or ``F.name`` for torch.nn.functional; the target's own
name is one.  In a signature

* ``name`` is an operand or option, ``name=default`` an optional one; all become positional;
* ``name@`` is a dim, or several, of the first argument, made non-negative; ``name@1`` counts one
  dim more, for operators that add one;
* ``name[]`` collects the remaining arguments into one tuple of integers;
* what follows ``*`` stays a keyword and is dropped where it has its default.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F

_TABLE = """
torch.add(input, other, *, alpha=1): __add__ __radd__
torch.sub(input, other, *, alpha=1): subtract __sub__
torch.mul(input, other): multiply __mul__ __rmul__
torch.div(input, other, *, rounding_mode=None): divide true_divide __div__ __truediv__
torch.pow(input, exponent): __pow__
torch.remainder(input, other): __mod__
torch.fmod(input, other):
torch.maximum(input, other):
torch.minimum(input, other):
torch.fmax(input, other):
torch.fmin(input, other):
torch.atan2(input, other): arctan2
torch.hypot(input, other):
torch.copysign(input, other):
torch.heaviside(input, values):
torch.lt(input, other): less __lt__
torch.le(input, other): less_equal __le__
torch.gt(input, other): greater __gt__
torch.ge(input, other): greater_equal __ge__
torch.eq(input, other): __eq__
torch.ne(input, other): not_equal __ne__
torch.logical_and(input, other):
torch.logical_or(input, other):
torch.logical_xor(input, other):
torch.logical_not(input):
torch.where(condition, input, other):
torch.clamp(input, min=None, max=None): clip
torch.neg(input): negative __neg__
torch.abs(input): absolute __abs__
torch.sign(input): sgn
torch.exp(input):
torch.exp2(input):
torch.expm1(input):
torch.log(input):
torch.log1p(input):
torch.log2(input):
torch.sqrt(input):
torch.rsqrt(input):
torch.square(input):
torch.reciprocal(input):
torch.sigmoid(input): expit F.sigmoid
torch.logit(input, eps=None):
torch.tanh(input): F.tanh
torch.sin(input):
torch.cos(input):
torch.tan(input):
torch.asin(input): arcsin
torch.acos(input): arccos
torch.atan(input): arctan
torch.sinh(input):
torch.cosh(input):
torch.erf(input):
torch.erfc(input):
torch.floor(input):
torch.ceil(input):
torch.trunc(input): fix
torch.frac(input):
torch.round(input, *, decimals=0):
torch.relu(input): F.relu
torch.lerp(input, end, weight):
torch.addcmul(input, tensor1, tensor2, *, value=1):
torch.addcdiv(input, tensor1, tensor2, *, value=1):
torch.matmul(input, other): __matmul__ mm bmm mv
torch.addmm(input, mat1, mat2, *, beta=1, alpha=1):
torch.sum(input, dim@=None, keepdim=False, *, dtype=None):
torch.mean(input, dim@=None, keepdim=False, *, dtype=None):
torch.prod(input, dim@=None, keepdim=False, *, dtype=None):
torch.amax(input, dim@=(), keepdim=False):
torch.amin(input, dim@=(), keepdim=False):
torch.max(input, dim@=None, keepdim=False):
torch.min(input, dim@=None, keepdim=False):
torch.all(input, dim@=None, keepdim=False):
torch.any(input, dim@=None, keepdim=False):
torch.argmax(input, dim@=None, keepdim=False):
torch.argmin(input, dim@=None, keepdim=False):
torch.cumsum(input, dim@, *, dtype=None):
torch.cumprod(input, dim@, *, dtype=None):
torch.softmax(input, dim@, *, dtype=None):
torch.log_softmax(input, dim@, *, dtype=None):
torch.stack(tensors, dim@1=0):
torch.cat(tensors, dim@=0): concat concatenate
torch.reshape(input, shape[]): view
torch.permute(input, dims@[]):
torch.transpose(input, dim0@, dim1@): swapaxes swapdims
torch.squeeze(input, dim@=None):
torch.unsqueeze(input, dim@1):
torch.flatten(input, start_dim@=0, end_dim@=-1):
torch.unflatten(input, dim@, sizes):
torch.flip(input, dims@[]):
torch.roll(input, shifts, dims@=None):
torch.select(input, dim@, index):
torch.narrow(input, dim@, start, length):
torch.index_select(input, dim@, index):
torch.gather(input, dim@, index):
torch.scatter(input, dim@, index, src):
torch.select_scatter(input, src, dim@, index):
torch.diagonal(input, offset=0, dim1@=0, dim2@=1):
torch.Tensor.expand(input, size[]):
torch.Tensor.repeat(input, repeats[]):
torch.tile(input, dims[]):
torch.Tensor.unfold(input, dimension@, size, step):
F.linear(input, weight, bias=None):
torch.conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
torch.conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
torch.conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
F.avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
F.avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,\
 divisor_override=None):
F.max_pool1d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
F.max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
F.max_pool3d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
F.adaptive_avg_pool1d(input, output_size): adaptive_avg_pool1d
F.adaptive_avg_pool2d(input, output_size):
F.adaptive_max_pool2d(input, output_size):
F.dropout(input, p=0.5, training=True):
F.batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False,\
 momentum=0.1, eps=1e-05):
F.layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-05):
F.group_norm(input, num_groups, weight=None, bias=None, eps=1e-05):
"""

REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a signature; ``extra`` is how many dims a new dim may lie beyond."""

    name: str
    default: Any = REQUIRED
    is_dim: bool = False
    extra: int = 0
    collects: bool = False
    keyword: bool = False


@dataclass(frozen=True)
class Operator:
    """A canonical operator and its parameters."""

    target: Callable[..., Any]
    parameters: tuple[Parameter, ...]

    @functools.cached_property
    def defaults(self) -> tuple[Any, ...]:
        """What arguments that are given by position are by default; empty where they may change."""
        positional = [p for p in self.parameters if not p.keyword]
        if any(p.is_dim or p.collects for p in positional):
            return ()
        return tuple([p.default for p in positional])

    @functools.cached_property
    def least(self) -> int:
        """How many arguments have to be given by position."""
        return max(1, sum(default is REQUIRED for default in self.defaults))

    def bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return normal arguments, or None where the call does not fit the signature."""
        if not kwargs and self.least <= len(args) <= len(self.defaults):
            return args + self.defaults[len(args) :], {}
        positional, named = list(args), dict(kwargs)
        named.pop("_stacklevel", None)
        bound: list[Any] = []
        options: dict[str, Any] = {}
        for p in self.parameters:
            value = _take(p, positional, named)
            if value is REQUIRED:
                return None
            if p.keyword:
                if value is not p.default and value != p.default:
                    options[p.name] = value
                continue
            if p.is_dim and value is None:  # all dims: what follows is absent, or not normal
                rest = {**options, **named}
                return None if positional or rest.pop("keepdim", False) else (tuple(bound), rest)
            if p.is_dim and _is_empty(bound[0]):
                return None
            if p.is_dim:
                value = _non_negative(value, _rank(bound[0]) + p.extra)
            bound.append(value)
        return None if positional or named else (tuple(bound), options)


def _take(parameter: Parameter, positional: list[Any], named: dict[str, Any]) -> Any:
    if parameter.keyword or not positional:
        return named.pop(parameter.name, parameter.default)
    if not parameter.collects:
        return positional.pop(0)
    if len(positional) == 1 and isinstance(positional[0], tuple | list):
        return tuple(positional.pop())
    taken = tuple(positional)
    positional.clear()
    return taken


def _is_empty(value: Any) -> bool:
    return isinstance(value, tuple | list) and not value


def _rank(value: Any) -> int:
    rank: int = (value[0] if isinstance(value, tuple | list) else value).dim()
    return rank


def _non_negative(dim: Any, rank: int) -> Any:
    if isinstance(dim, tuple | list):
        return tuple(_non_negative(d, rank) for d in dim)
    return dim % max(rank, 1) if isinstance(dim, int) else dim


def _parse_parameter(text: str, keyword: bool) -> Parameter:
    match = re.fullmatch(r"(\w+)(@?)(1?)(\[\])?(?:=(.*))?", text)
    assert match is not None, text
    name, dim, extra, collects, default = match.groups()
    value = REQUIRED if default is None else ast.literal_eval(default)
    return Parameter(name, value, bool(dim), int(extra or 0), bool(collects), keyword)


def _parse_signature(text: str) -> tuple[Parameter, ...]:
    parameters: list[Parameter] = []
    keyword = False
    for item in re.split(r",\s*", text):
        if item == "*":
            keyword = True
        else:
            parameters.append(_parse_parameter(item, keyword))
    return tuple(parameters)


def _resolve(path: str) -> Callable[..., Any]:
    found: Any = {"torch": torch, "F": F}[path.split(".")[0]]
    for name in path.split(".")[1:]:
        found = getattr(found, name)
    return cast(Callable[..., Any], found)


@functools.cache
def operators() -> dict[str, Operator]:
    """Return the table: for each spelling its canonical operator."""
    table: dict[str, Operator] = {}
    for line in _TABLE.strip().splitlines():
        match = re.fullmatch(r"([\w.]+)\((.*)\):(.*)", line)
        assert match is not None, line
        path, signature, others = match.groups()
        operator = Operator(_resolve(path), _parse_signature(signature))
        own = path if path.startswith("F.") else path.split(".")[-1]
        for spelling in [own, *others.split()]:
            table[spelling] = operator
    # torch.nn.functional has functions of torch under its own name, and the other way round.
    for name in ("softmax", "log_softmax", "conv1d", "conv2d", "conv3d", "layer_norm"):
        table.setdefault(f"F.{name}", table.get(name) or table[f"F.{name}"])
    return table


def spelling_of(function: Any) -> str:
    """Return the name under which the table lists a function that torch was called with."""
    name = str(getattr(function, "__name__", ""))
    module = getattr(function, "__module__", None) or ""
    name = name.removeprefix("special_")
    if module in ("torch.nn.functional", "torch._C._nn"):
        return f"F.{name}"
    return name
