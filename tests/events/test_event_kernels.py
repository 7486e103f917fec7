"""The C kernels of event networks against the reference, bit by bit."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from snncc.errors import LaunchError
from snncc.ir.events.network import (
    EventEdge,
    EventGroup,
    EventNetwork,
    EventOrder,
    EventTensors,
)
from snncc.ir.events.run import run_events
from snncc.ir.nodes import Op
from snncc.passes.gradients.differentiate import differentiate
from snncc.runtime.events.kernel import EventKernel, find_kernel
from snncc.runtime.events.layout import EventLayout
from snncc.runtime.events.operators import run_kernel
from tests.events.networks import all_results, chain, fire, integrate, tensors_of

SEED = 0x5EED_5EED_5EED


def hidden() -> EventNetwork:
    """Return three layers, one of which hears itself, and an edge past a layer."""
    steps = [fire("hard"), fire("soft", Op.GT), fire("soft", Op.GT, detach=True)]
    network = chain([1, 1, 1], EventOrder(), steps)
    edges = (*network.edges, EventEdge(0, 2), EventEdge(1, 1, is_delayed=True))
    return replace(network, edges=edges)


def queued() -> EventNetwork:
    """Return two layers side by side and a readout; the input is a queue of events."""
    layers = chain([1, 1, 1], EventOrder(), [fire("soft"), fire("hard"), integrate()]).groups
    outputs = tuple(
        replace(group, starts=i == 2, is_output=i == 1) for i, group in enumerate(layers)
    )
    groups = (EventGroup("events", None), *outputs)
    pairs = [(0, 1, False), (0, 2, False), (1, 3, False), (2, 3, False), (0, 2, True)]
    edges = tuple(EventEdge(*pair) for pair in pairs)
    return EventNetwork(groups, edges, all_results(groups), EventOrder())


NETWORKS = {"hidden": hidden(), "queued": queued()}
ORDERS = {
    "momentum": EventOrder(),
    "one by one": EventOrder(1),
    "all": EventOrder(1000),
    "noise": EventOrder(3, noise=0.5),
    "random": EventOrder(2, "random"),
    "refires": EventOrder(2, refractory_dropout=0.4),
    "random refires": EventOrder(3, "random", refractory_dropout=0.6),
    "stops": EventOrder(2, stop=0),
    "stops later": EventOrder(1, "momentum", 0.25, 0.25, stop=2),
}


def differentiable(network: EventNetwork, order: EventOrder) -> EventNetwork:
    """Return a network with gradients, in an order."""
    groups = tuple(
        group if group.fire is None else replace(group, adjoint=differentiate(group.fire))
        for group in network.groups
    )
    return replace(network, groups=groups, order=order)


def drawn_tensors(network: EventNetwork, number: int, dtype: torch.dtype) -> list[Tensor]:
    """Return random tensors for a network, of random sizes, some with most weights zero."""
    rng = random.Random(number)
    sizes = [rng.randint(1, 20) for _ in network.groups]
    tensors = tensors_of(network, sizes, rng, rng.randint(1, 4), rng.randint(1, 5))
    weights = [w.clone() for w in tensors.weights]
    for w in weights:
        w[torch.rand(w.shape) < rng.choice([0.0, 0.3, 0.9])] = 0.0
        if rng.random() < 0.3:
            w[w == 0] = 0.25
    tensors = EventTensors(
        tensors.standing,
        tensors.decay,
        tensors.membrane,
        tensors.emitted,
        tensors.lanes,
        tuple(weights),
    )
    return [x.to(dtype).requires_grad_() for x in network.flatten(tensors)]


def compare(network: EventNetwork, flat: list[Tensor]) -> None:
    """Require the results of the reference bit by bit, and its gradients closely."""
    expected = run_events(network, network.unflatten(flat), SEED)
    kernel = EventKernel(network)
    tensors = network.unflatten(flat)
    results, counts = run_kernel(kernel, tensors, SEED)
    with torch.no_grad():
        again, counts_again = run_kernel(kernel, tensors, SEED)
    cotangents = [torch.randn_like(x) for x in results]
    ours, theirs = (
        torch.autograd.grad(
            [x for x in of if x.requires_grad],
            flat,
            [g for x, g in zip(of, cotangents, strict=True) if x.requires_grad],
            materialize_grads=True,
        )
        for of in (results, expected.results)
    )

    assert counts.equal(expected.counts)
    assert counts_again.equal(expected.counts)
    for one, two, three in zip(results, again, expected.results, strict=True):
        assert one.equal(three)
        assert two.equal(three)
    close = 1e-9 if flat[0].dtype is torch.float64 else 1e-4
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_are_the_reference(name: str, order: str) -> None:
    """Spikes, membranes and counts bit by bit, in every order, and all gradients."""
    network = differentiable(NETWORKS[name], ORDERS[order])
    dtype = torch.float32 if name == "hidden" else torch.float64

    for number in range(4):
        compare(network, drawn_tensors(network, number, dtype))


def test_gradients_of_a_tape_that_was_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that takes more room than usual is run once more."""
    monkeypatch.setattr(EventLayout, "capacity", 7)
    network = differentiable(NETWORKS["hidden"], ORDERS["refires"])

    compare(network, drawn_tensors(network, 1, torch.float32))


def test_a_sample_does_not_see_the_others() -> None:
    """The results of a batch are those of its samples alone, and threads change no bit."""
    network = differentiable(NETWORKS["hidden"], ORDERS["momentum"])
    flat = [x.detach() for x in drawn_tensors(network, 3, torch.float32)]
    tensors = network.unflatten(flat)
    kernel, single = EventKernel(network), EventKernel(network, num_threads=1)

    results, _ = run_kernel(kernel, tensors, SEED)
    serial, _ = run_kernel(single, tensors, SEED)

    samples = tensors.standing[0].shape[1]
    assert samples > 1
    for b in range(samples):
        own = slice(b, b + 1)
        alone = replace(
            tensors,
            standing=tuple(x[:, own] for x in tensors.standing),
            membrane=tuple(None if x is None else x[own] for x in tensors.membrane),
            emitted=tuple(None if x is None else x[own] for x in tensors.emitted),
        )
        found, _ = run_kernel(kernel, alone, SEED)
        for one, whole, by_one in zip(found, results, serial, strict=True):
            assert one.equal(whole[..., own, :])
            assert one.equal(by_one[..., own, :])


@pytest.mark.filterwarnings("ignore")
def test_operators_are_what_torch_expects() -> None:
    """Shapes without data, gradients, and tracing by torch's own checks.

    What is behind the end of a tape is arbitrary, so that traced and plain results are compared
    without one; their gradients then need a second run.
    """
    network = differentiable(NETWORKS["hidden"], ORDERS["momentum"])
    kernel = EventKernel(network)
    flat = drawn_tensors(network, 2, torch.float64)

    forward: Any = torch.ops.snncc.events_forward.default
    torch.library.opcheck(forward, (flat, kernel.key, SEED, False))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(forward, (flat, kernel.key, SEED, True), test_utils=checks)


def test_an_unknown_network_is_named() -> None:
    """The operators of another process's model."""
    with pytest.raises(LaunchError, match="no event network 'nothing' in this process"):
        find_kernel("nothing")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc and its sanitizers")
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """No access out of bounds and no undefined behaviour, forward and backward."""
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    compiler = tmp_path / "gcc"
    compiler.write_text(SANITIZING)
    compiler.chmod(0o755)
    environment = os.environ | {
        "SNNCC_CC": str(compiler),
        "SNNCC_CACHE_DIR": str(tmp_path),
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "-m", "tests.events.test_event_kernels"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "6 runs\n"


# Without -O3, which takes many times as long with sanitizers.
SANITIZING = """#!/bin/sh
for argument; do
  shift
  test "$argument" = -O3 && argument=-O0
  set -- "$@" "$argument"
done
exec gcc -fsanitize=address,undefined -fno-sanitize-recover=all "$@"
"""


def main() -> None:
    """Run both networks in some orders, forward and backward, for sanitizers."""
    done = 0
    for network in NETWORKS.values():
        for name in ("momentum", "random refires", "stops later"):
            whole = differentiable(network, ORDERS[name])
            flat = drawn_tensors(whole, done, torch.float32)
            results, _ = run_kernel(EventKernel(whole, 2), whole.unflatten(flat), SEED)
            sum(x.sum() for x in results).backward()
            done += 1
    sys.stdout.write(f"{done} runs\n")


if __name__ == "__main__":
    main()
