"""NIR graphs to read, made by hand."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np

DT = 1e-4


def weights(*shape: int, seed: int = 0) -> Any:
    """Return random weights in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def lif(n: int, *, tau: float = 2e-3, r: float | None = None, v_reset: float = 0.0) -> nir.LIF:
    """Return neurons; without ``r`` their input is not scaled."""
    ones = np.ones(n)
    return nir.LIF(
        tau=ones * tau,
        r=ones * (tau / DT if r is None else r),
        v_leak=ones * 0,
        v_threshold=ones,
        v_reset=ones * v_reset,
    )


def dense() -> nir.NIRGraph:
    """Two layers one after the other."""
    return nir.NIRGraph.from_list(
        nir.Input(np.array([5])),
        nir.Affine(weights(8, 5), weights(8)),
        lif(8),
        nir.Linear(weights(3, 8)),
        lif(3, tau=1e-3),
        nir.Output(np.array([3])),
    )


def recurrent() -> nir.NIRGraph:
    """A layer that feeds back into itself, its weights after the neurons."""
    nodes = {
        "input": nir.Input(np.array([5])),
        "fc": nir.Linear(weights(8, 5)),
        "lif": lif(8),
        "w_rec": nir.Affine(weights(8, 8) * 0.3, weights(8) * 0.1),
        "output": nir.Output(np.array([8])),
    }
    edges = [
        ("input", "fc"),
        ("fc", "lif"),
        ("lif", "w_rec"),
        ("w_rec", "lif"),
        ("lif", "output"),
    ]
    return nir.NIRGraph(nodes, edges)


def feedback() -> nir.NIRGraph:
    """Two layers; the second one also excites the first."""
    nodes = {
        "input": nir.Input(np.array([4])),
        "first": lif(4),
        "up": nir.Linear(weights(6, 4)),
        "second": lif(6),
        "down": nir.Linear(weights(4, 6)),
        "output": nir.Output(np.array([6])),
    }
    edges = [
        ("input", "first"),
        ("first", "up"),
        ("up", "second"),
        ("second", "down"),
        ("down", "first"),
        ("second", "output"),
    ]
    return nir.NIRGraph(nodes, edges)


def nested() -> nir.NIRGraph:
    """A graph in a graph."""
    inner = nir.NIRGraph.from_list(nir.Input(np.array([3])), lif(3), nir.Output(np.array([3])))
    nodes = {
        "input": nir.Input(np.array([5])),
        "fc": nir.Linear(weights(3, 5)),
        "block": inner,
        "output": nir.Output(np.array([3])),
    }
    return nir.NIRGraph(nodes, [("input", "fc"), ("fc", "block"), ("block", "output")])


def convolutional() -> nir.NIRGraph:
    """Convolution, both kinds of pooling, flattening, integrators without leak."""
    return nir.NIRGraph.from_list(
        nir.Input(np.array([2, 8, 8])),
        nir.Conv2d((8, 8), weights(4, 2, 3, 3), 1, 1, 1, 1, weights(4)),
        nir.IF(r=np.full((4, 8, 8), 2e3), v_threshold=np.ones((4, 8, 8))),
        nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        nir.Flatten({"input": np.array([4, 2, 2])}, start_dim=0, end_dim=-1),
        nir.Linear(weights(3, 16)),
        nir.I(r=np.full(3, 1e4)),
        nir.Output(np.array([3])),
    )


def currents() -> nir.NIRGraph:
    """Neurons behind synapses, with parameters of their own; a delay, a scale and a threshold."""
    ramp = np.linspace(1.0, 2.0, 6)
    return nir.NIRGraph.from_list(
        nir.Input(np.array([6])),
        nir.Scale(ramp),
        nir.Delay(np.full(6, 3 * DT)),
        nir.CubaLIF(
            tau_syn=2e-3 * ramp,
            tau_mem=5e-3 * ramp,
            r=40 * ramp,
            v_leak=0.1 * ramp,
            v_threshold=ramp,
            v_reset=-0.25 * ramp,
            w_in=20 * ramp,
        ),
        nir.Linear(weights(4, 6)),
        nir.CubaLI(
            tau_syn=np.full(4, 1e-3),
            tau_mem=np.full(4, 2e-3),
            r=np.full(4, 20.0),
            v_leak=np.zeros(4),
            w_in=np.full(4, 10.0),
        ),
        nir.Threshold(np.full(4, 0.5)),
        nir.Output(np.array([4])),
    )


GRAPHS = {
    "dense": (dense, (5,)),
    "recurrent": (recurrent, (5,)),
    "feedback": (feedback, (4,)),
    "nested": (nested, (5,)),
    "convolutional": (convolutional, (2, 8, 8)),
    "currents": (currents, (6,)),
}
