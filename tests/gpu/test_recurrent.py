"""Recurrent loops with kernels for GPUs, in an interpreter or on the CPU."""

from __future__ import annotations

import copy
import re
import shutil

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import snncc
from snncc.codegen.cuda.target import CudaTarget
from snncc.codegen.triton.target import TritonTarget
from snncc.ir.loop_call import LoopCall
from snncc.ir.step_call import StepCall, step_inputs
from snncc.runtime.gpu.binaries import compile_offline, machine_of_arch
from snncc.runtime.gpu.step_kernel import BoundGpuStep, GpuStepKernel
from snncc.runtime.loops.step_kernel import Operand
from tests import recurrent_models as models
from tests.equivalence.test_recurrent import (
    CASES,
    Case,
    assert_equal,
    assert_gradients,
    run,
)
from tests.gpu.emulated import Library
from tests.recurrent_models import N

pytestmark = [
    # Triton 3.6 turns arrays of one element into numbers in a way that NumPy deprecates.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]


def compare(
    case: Case,
    target: str,
    dtype: torch.dtype,
    sizes: tuple[tuple[int, int], ...],
    autocast: torch.dtype | None = None,
):
    """Compare values, gradients and buffers with the serial code; return the compiled model."""
    torch.manual_seed(0)
    model = case.make().to(dtype)
    twin = copy.deepcopy(model)
    fast = snncc.compile(twin, target=target)
    for T, B in sizes:
        if case.least_batch > B:
            continue
        x = (torch.randn(case.shape(T, B), dtype=dtype) * 1.5).requires_grad_()
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            expected, wanted = run(model, x, [x, *model.parameters()])
            actual, found = run(fast, x, [x, *twin.parameters()])

        assert_equal(expected, actual, exact=case.exact)
        assert_gradients(wanted, found, autocast or dtype)
        assert_equal(list(model.buffers()), list(twin.buffers()), exact=True)
    return fast


@pytest.mark.parametrize("name", CASES)
def test_loop_is_the_serial_code(name: str, interpreted: None) -> None:
    """Values, gradients and buffers are those of the serial code; one step and no lanes, too."""
    fast = compare(CASES[name], "triton", torch.float32, ((5, 3), (1, 2), (3, 0)))
    (line,) = (layer for layer in fast.plans[0].layers if layer.kind == "recurrent")

    assert (line.kernel, line.form) == ("triton", "step by step, fused")
    assert "torch runs" in line.note


# States, masks and parameters of each kind; products, norms and numbers between fused steps.
IN_HALVES = [
    "own spikes", "masked weight", "membrane norm", "adaptive", "grouped convolution", "refractory",
    "numbers of steps",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", IN_HALVES)
def test_loop_in_half_types(name: str, dtype: torch.dtype, rounding: None) -> None:
    """In a half type each operator is rounded, so that values are those of the serial code."""
    fast = compare(CASES[name], "triton", dtype, ((5, 3), (1, 2), (3, 0)))
    (line,) = (layer for layer in fast.plans[0].layers if layer.kind == "recurrent")

    assert line.numerics is snncc.Numerics.BITWISE
    assert line.training_bytes < 64


@pytest.mark.parametrize("name", ["own spikes", "adaptive", "dropout and noise", "convolution"])
def test_loop_under_autocast(name: str, rounding: None) -> None:
    """Half types and float32 share kernels: nothing is converted between them and products."""
    fast = compare(CASES[name], "triton", torch.float32, ((5, 3), (1, 2)), torch.bfloat16)
    (line,) = (layer for layer in fast.plans[0].layers if layer.kind == "recurrent")

    assert line.numerics is snncc.Numerics.BITWISE
    assert "cast" not in line.note


class Rounded(models.Recurrent):
    """Operators that round their numbers, and a spike function that computes before it compares."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N, bias=False)
        self.decay = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        v = s = self.zeros(x)
        out = []
        for t in range(x.shape[0]):
            v = self.decay * v + x[t] + self.back(s)
            v = torch.where(v > 0.1 * (t + 1), v, 0.1).clamp(-1.3, 2.3)
            s = Above.apply(v, v**2 / 3.0)
            v = torch.maximum(v - 0.3 * s, v / (1.125 + v.abs()))
            out.append(s + v)
        return torch.stack(out)


class Above(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, threshold):
        ctx.save_for_backward(v, threshold)
        return (0.7 * v - threshold * v > 0.1).to(v.dtype)

    @staticmethod
    def backward(ctx, g):
        v, threshold = ctx.saved_tensors
        near = ((v - threshold).abs() < 0.3).to(v.dtype)
        return g * near, -0.3 * g * near


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_numbers_beside_half_types(dtype: torch.dtype, rounding: None) -> None:
    """A number is rounded where torch rounds it: in comparisons, bounds and choices."""
    compare(Case(Rounded), "triton", dtype, ((9, 200), (7, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loop_in_half_types_is_verified(dtype: torch.dtype, rounding: None, monkeypatch) -> None:
    """Each pass is validated, and the certificate holds."""
    monkeypatch.setenv("SNNCC_VALIDATE", "1")
    torch.manual_seed(0)
    model, x = models.OwnSpikes().to(dtype), torch.randn(6, 3, N, dtype=dtype).requires_grad_()

    report = snncc.verify(model, snncc.compile(model, target="triton"), x)

    assert report.ok, report


@pytest.mark.parametrize("name", ["own spikes", "convolution", "delay"])
def test_loop_in_cuda(name: str, emulated: Library) -> None:
    """So are those of the same steps in CUDA C++, which are launched once a step."""
    for dtype in (torch.float64, torch.bfloat16):
        compare(CASES[name], "cuda", dtype, ((4, 3), (1, 1)))

    assert len(emulated.launched) >= 2 * (4 + 1)


@pytest.mark.parametrize("name", ["adaptive", "convolution"])
def test_loop_is_verified(name: str, interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass is validated, the gradient of the loop too, and the certificate holds."""
    monkeypatch.setenv("SNNCC_VALIDATE", "1")
    torch.manual_seed(0)
    model = CASES[name].make().double()
    fast = snncc.compile(model, target="triton")
    x = (torch.randn(CASES[name].shape(6, 3), dtype=torch.float64) * 1.5).requires_grad_()

    report = snncc.verify(model, fast, x)

    assert report.ok, report
    assert any(c.part == "kernel" and "grad" in c.name for c in report.comparisons)


def test_stream(interpreted: None) -> None:
    """One step after another gives what the sequence gives."""
    torch.manual_seed(0)
    model, x = models.OwnSpikes().eval(), torch.randn(6, 3, models.N)
    fast = snncc.compile(model, target="triton", example_inputs=(x,))
    with torch.no_grad():
        step = fast.stream()
        steps = torch.stack([step(x_t) for x_t in x])

        assert torch.equal(steps, model(x))


# What reads a number off a GPU, or moves one to it: the CPU would wait, and no graph can hold it.
WAITING = {"aten::item", "aten::_local_scalar_dense", "aten::lift_fresh", "aten::is_nonzero"}


@pytest.mark.parametrize("name", ["own spikes", "masked weight", "numbers of steps", "convolution"])
def test_calls_do_not_wait(name: str, emulated: Library) -> None:
    """After the first call nothing in a training step makes the CPU wait for a GPU.

    Numbers that enter a loop, and those of each step, are on the device by then.
    """
    torch.manual_seed(0)
    case = CASES[name]
    model = case.make()
    fast = snncc.compile(model, target="cuda")
    x = torch.randn(case.shape(4, 3), requires_grad=True)
    y = pytree.tree_leaves(fast(x))[0]
    g = torch.rand_like(y)
    torch.autograd.grad(y, [x, *model.parameters()], g)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = pytree.tree_leaves(fast(x))[0]
        torch.autograd.grad(y, [x, *model.parameters()], g)
    called = {event.key for event in profile.key_averages()}

    assert "aten::empty" in called
    assert not called & WAITING


def steps_of(
    case: Case, shape: tuple[int, ...], arch: str, target: str, dtype: torch.dtype
) -> list[BoundGpuStep]:
    """Return the fused steps of a loop and of its gradient, bound to contiguous operands."""
    model = case.make().to(dtype)
    fast = snncc.compile(model, target="triton")
    graph = fast.specialize(torch.randn(case.shape(5, 3), dtype=dtype).requires_grad_()).graph
    (call,) = (node.target for node in graph.nodes if isinstance(node.target, LoopCall))
    language = CudaTarget() if target == "cuda" else TritonTarget()
    found = []
    for loop in call.loops:
        for node in (n for n in loop.body.nodes if isinstance(n.target, StepCall)):
            step = node.target
            kernel = GpuStepKernel(step, language, torch.device("meta"), machine_of_arch(arch))
            types = {
                name: n.meta.get("dtype") or step.dtype for name, n in step_inputs(node).items()
            }
            found.append(kernel.bind({name: Operand.of(t, shape) for name, t in types.items()}))
    return found


@pytest.mark.usefixtures("triton_cache")
@pytest.mark.parametrize(
    ("arch", "target", "dtype"),
    [
        ("sm_90", "triton", torch.float32),
        ("sm_80", "cuda", torch.float32),
        ("sm_90", "triton", torch.bfloat16),
        ("gfx942", "triton", torch.bfloat16),
        ("sm_80", "cuda", torch.float16),
    ],
)
def test_steps_move_16_bytes_at_a_time(arch: str, target: str, dtype: torch.dtype) -> None:
    """The fused steps of a loop and of its gradient spill nothing, and move vectors.

    In half types those are the widest where no float32 is among the arrays; nothing is contracted,
    and values are rounded to the nearest.
    """
    if target == "cuda" and shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on this machine")
    steps = steps_of(CASES["own spikes"], (64, 512), arch, target, dtype)
    texts = []
    for bound in steps:
        binary = compile_offline(bound.call.kernel.source, bound.call.variant, arch)
        texts.append(str(binary.stages.get("ptx") or binary.stages["amdgcn"]))

        assert bound.call.variant.aligned
        assert binary.spilled == 0
        assert binary.accesses.local == 0
        assert set(binary.accesses.loads) == set(binary.accesses.stores) == {16}
        # On gfx942 a quotient takes multiply-adds, and the first step has none.
        assert not re.search(r"\bfma\.\S*f32", texts[-1])
    assert len(steps) >= 3
    assert not re.search(r"\bv_(?:pk_)?fmac?_f32", texts[0])
    if arch.startswith("sm_") and dtype != torch.float32:
        assert re.search(r"cvt\.rn\.b?f16", texts[0])


def test_sparse_operands_are_copied_once(
    interpreted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence whose lanes lie far apart is copied before the loop, not at each step."""
    copies = []
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(
        torch.Tensor, "contiguous", lambda t, **k: copies.append(t.shape) or contiguous(t, **k)
    )
    model = models.OwnSpikes()
    x = torch.randn(9, 3, 8 * models.N)[:, :, ::8]
    fast = snncc.compile(model, target="triton")
    with torch.no_grad():
        fast(x)
        copies.clear()

        assert torch.equal(fast(x), model(x))
    assert len(copies) <= 2
