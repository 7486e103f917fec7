"""Recurrent cells of torch, one step each, as the products and elementwise operators that they are.

A cell is recorded as these operators, in the order in which torch computes them on a CPU, so that a
loop around it is fused like any other recurrent loop::

    LSTM  i, f, g, o = W_h h + W_x x
          c = sigmoid(f) c + sigmoid(i) tanh(g);  h = sigmoid(o) tanh(c)
    GRU   r, z, n = W_h h and W_x x
          n = tanh(n_x + n_h sigmoid(r_h + r_x));  h = (h - n) sigmoid(z_h + z_x) + n
    RNN   h = f(W_h h + W_x x), where f is tanh or relu
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

# Calls a torch function and records it.
Do: TypeAlias = Callable[..., Any]


def _products(do: Do, x: Tensor, h: Tensor, parameters: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Return what the state and the input contribute to all gates."""
    w_ih, w_hh, b_ih, b_hh = parameters
    return do(F.linear, h, w_hh, b_hh), do(F.linear, x, w_ih, b_ih)


def _lstm(do: Do, x: Tensor, hx: Any, *parameters: Any) -> tuple[Tensor, Tensor]:
    h, c = hx
    gates = do(torch.chunk, do(torch.add, *_products(do, x, h, parameters)), 4, 1)
    i, f, o = (do(torch.sigmoid, gates[n]) for n in (0, 1, 3))
    written = do(torch.mul, i, do(torch.tanh, gates[2]))
    c = do(torch.add, do(torch.mul, f, c), written)
    return do(torch.mul, o, do(torch.tanh, c)), c


def _gru(do: Do, x: Tensor, h: Tensor, *parameters: Any) -> Tensor:
    from_h, from_x = _products(do, x, h, parameters)
    size = from_h.shape[1] // 3
    # Both sums in one tensor: the last digit of a sigmoid depends on where a row begins.
    gates = do(torch.add, *(do(torch.narrow, y, 1, 0, 2 * size) for y in (from_h, from_x)))
    r, z = (do(torch.sigmoid, gate) for gate in do(torch.chunk, gates, 2, 1))
    n_h, n_x = (do(torch.narrow, y, 1, 2 * size, size) for y in (from_h, from_x))
    n = do(torch.tanh, do(torch.add, n_x, do(torch.mul, n_h, r)))
    result: Tensor = do(torch.add, do(torch.mul, do(torch.sub, h, n), z), n)
    return result


def _rnn(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(do: Do, x: Tensor, h: Tensor, *parameters: Any) -> Tensor:
        result: Tensor = do(function, do(torch.add, *_products(do, x, h, parameters)))
        return result

    return cell


ARGUMENTS = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")

CELLS: Mapping[str, Callable[..., Any]] = {
    "lstm_cell": _lstm,
    "gru_cell": _gru,
    "rnn_tanh_cell": _rnn(torch.tanh),
    "rnn_relu_cell": _rnn(torch.relu),
}
