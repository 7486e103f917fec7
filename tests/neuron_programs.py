"""Neuron programs written by hand, and the same neurons in plain eager PyTorch."""

from dataclasses import replace

import torch

from snncc.ir.nodes import (
    Binary,
    Const,
    FixedPoint,
    Input,
    Let,
    Op,
    Rank,
    Recurrence,
    State,
    Unary,
    Var,
)
from snncc.ir.program import Adjoint, Guess, GuessedStep, NeuronProgram, Place, Storage
from snncc.passes.parallel.parallelize_fixed_point import parallelize


def _binary(op):
    return lambda lhs, rhs: Binary(op, lhs, rhs)


add, sub, mul, div = map(_binary, (Op.ADD, Op.SUB, Op.MUL, Op.DIV))
one = Const(1.0)


def lif(place=Place.SCRATCH, *, saved=("h",), decay=0.9):
    """Leaky integrate-and-fire with hard reset and the arctan surrogate.

    Its inputs are x [T, *lanes] and the initial potential v0 [*lanes]; its final is v.
    """
    forward = Recurrence(
        name="lif",
        inputs=(Input("x", Rank.STEP), Input("v0", Rank.LANE)),
        states=(State("v", Var("v0"), "v_next"),),
        lets=(
            Let("h", add(mul(Const(decay), Var("v")), Var("x"))),
            Let("fire", Binary(Op.GE, Var("h"), one)),
            Let("s", Unary(Op.FLOAT, Var("fire"))),
            Let("v_next", mul(sub(one, Var("s")), Var("h"))),
        ),
        outputs=("s",),
        finals=("v",),
    )
    reverse = Recurrence(
        name="lif_adjoint",
        inputs=(
            Input("h", Rank.STEP),
            Input("s", Rank.STEP),
            Input("s_bar", Rank.STEP),
            Input("v_bar", Rank.LANE),
        ),
        states=(State("v_next_bar", Var("v_bar"), "carried"),),
        lets=(
            Let("s_total", sub(Var("s_bar"), mul(Var("v_next_bar"), Var("h")))),
            Let("z", mul(Const(3.0), sub(Var("h"), one))),
            Let("slope", div(one, add(one, mul(Var("z"), Var("z"))))),
            Let("through", mul(Var("v_next_bar"), sub(one, Var("s")))),
            Let("h_bar", add(Var("through"), mul(Var("s_total"), Var("slope")))),
            Let("carried", mul(Const(decay), Var("h_bar"))),
        ),
        outputs=("h_bar",),
        finals=("v_next_bar",),
        reverse=True,
    )
    adjoint = Adjoint(
        recurrence=reverse,
        residuals=("h", "s"),
        output_cotangents=("s_bar",),
        final_cotangents=("v_bar",),
        step_gradients=("h_bar",),
        lane_gradients=(("v_next_bar",),),
    )
    recomputed = tuple(name for name in ("fire", "s") if name not in saved)
    return NeuronProgram(forward, adjoint, Storage(place, saved, recomputed))


class ArctanSpike(torch.autograd.Function):
    """Heaviside of h - 1 with the gradient 1 / (1 + (3 (h - 1))^2)."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return (h >= 1.0).to(h.dtype)

    @staticmethod
    def backward(ctx, s_bar):
        (h,) = ctx.saved_tensors
        z = 3.0 * (h - 1.0)
        return s_bar * (1.0 / (1.0 + z * z))


def eager_lif(x, v0, decay=0.9):
    """Run the neuron of `lif` as users write it."""
    v, spikes = v0, []
    for x_t in x:
        h = decay * v + x_t
        s = ArctanSpike.apply(h)
        v = (1.0 - s) * h
        spikes.append(s)
    v = v.expand(torch.broadcast_shapes(x.shape[1:], v0.shape))
    shape = (0, *v.shape)
    return (torch.stack(spikes) if spikes else x.new_empty(shape)), v


def without_adjoint(program):
    """Return the program for inference alone."""
    return replace(program, adjoint=None, storage=None)


def solving(place=Place.SCRATCH, *, as_bits=True):
    """The neuron of `lif` in fixed-point form; its spikes are guessed as bits, or as numbers."""
    made = parallelize(lif(place), FixedPoint())
    if as_bits:
        return made
    given = Let("v_given", mul(sub(one, Var("s_guess")), Var("h")))
    states = (State("v", Var("v0"), "v_given"),)
    lets = (*made.forward.lets, given)
    return replace(made, sweep=GuessedStep(lets, states, (Guess("s_guess", "s", False),)))
