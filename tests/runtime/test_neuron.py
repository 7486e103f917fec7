"""Neuron layers on tensors: bitwise equality with eager PyTorch, in every shape and stride."""

import math

import pytest
import torch

from snncc.errors import LaunchError, UnsupportedError
from snncc.ir.nodes import Binary, Const, Input, Let, Op, Rank, Recurrence, State, Unary, Var
from snncc.ir.program import NeuronProgram, Place
from snncc.runtime.operators import Neuron
from tests.neuron_programs import eager_lif, lif, without_adjoint

STORAGES = {
    "scratch": (Place.SCRATCH, ("h",)),
    "state": (Place.SCRATCH, ("v",)),
    "memory": (Place.MEMORY, ("h",)),
    "bits": (Place.MEMORY, ("h", "fire")),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_neuron(storage="scratch", **options):
    place, saved = STORAGES[storage]
    program = lif(place, saved=saved)
    if saved == ("v",):
        recomputed = ("h", "fire", "s")
        program = NeuronProgram(
            program.forward, program.adjoint, type(program.storage)(place, saved, recomputed)
        )
    return Neuron(program, **options)


def compare(neuron, x, v0):
    """Assert that outputs, finals and gradients are those of eager PyTorch, bit for bit."""
    leaves = [x.detach().requires_grad_(), v0.detach().requires_grad_()]
    copies = [x.detach().requires_grad_(), v0.detach().requires_grad_()]
    (s,), (v,) = neuron([leaves[0]], [leaves[1]])
    s_ref, v_ref = eager_lif(*copies)
    assert torch.equal(s.detach(), s_ref.detach())
    assert torch.equal(v.detach(), v_ref.detach())
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in (s, v)]
    gradients = torch.autograd.grad((s, v), leaves, cotangents)
    expected = torch.autograd.grad((s_ref, v_ref), copies, cotangents)
    assert torch.equal(gradients[0], expected[0])
    if v0.shape == x.shape[1:]:
        assert torch.equal(gradients[1], expected[1])
    else:
        # Eager sums broadcast dimensions in another order: some 200 terms of any sign, float32.
        bound = 1e-5 * float(expected[1].abs().max())
        assert torch.allclose(gradients[1], expected[1], rtol=0, atol=bound)
    return s


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 4, 33), (6, 2, 3, 100), (9,), (2, 3000)])
def test_equals_eager(shape, storage, dtype):
    """Every storage gives the results of eager PyTorch."""
    x, v0 = torch.rand(shape, dtype=dtype) * 1.5, torch.rand(shape[1:], dtype=dtype)

    compare(make_neuron(storage), x, v0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("threads", [1, 2])
def test_time_in_chunks(storage, threads):
    """Little scratch cuts time into chunks, whose states are restored from checkpoints."""
    x, v0 = torch.rand(23, 3, 70), torch.rand(70)
    neuron = make_neuron(storage, scratch_bytes=1, num_threads=threads)

    compare(neuron, x, v0)


def test_threads_do_not_change_results():
    """Any number of threads computes the same bits."""
    x, v0 = torch.rand(40, 5000), torch.rand(5000)

    for threads in (1, 2, 3):
        compare(make_neuron(num_threads=threads), x, v0)


LAYOUTS = {
    "batch-first": lambda T, B, N: torch.rand(B, T, N).transpose(0, 1),
    "time-last": lambda T, B, N: torch.rand(B, N, T).permute(2, 0, 1),
    "lanes-swapped": lambda T, B, N: torch.rand(T, N, B).transpose(1, 2),
    "gaps": lambda T, B, N: torch.rand(T, B, 2 * N)[..., ::2],
    "rows-with-gaps": lambda T, B, N: torch.rand(T, B, N + 3)[..., :N],
    "every-second-step": lambda T, B, N: torch.rand(2 * T, B, N)[::2],
    "one-sample": lambda T, B, N: torch.rand(T, 1, N).expand(T, B, N),
    "one-lane": lambda T, B, N: torch.rand(T, B, 1).expand(T, B, N),
    "one-step": lambda T, B, N: torch.rand(1, B, N).expand(T, B, N),
    "one-number": lambda T, B, N: torch.rand(()).expand(T, B, N),
    "offset": lambda T, B, N: torch.rand(T * B * N + 5)[5:].view(T, B, N),
}


@pytest.mark.parametrize("storage", ["scratch", "bits"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, storage):
    """Inputs may lie in memory in any way."""
    x = LAYOUTS[layout](6, 5, 40)

    compare(make_neuron(storage), x, torch.rand(5, 40))


@pytest.mark.parametrize("v0", [(), (40,), (5, 1), (1, 40), (5, 40)], ids=str)
@pytest.mark.parametrize("storage", ["scratch", "bits"])
def test_broadcast_parameters(v0, storage):
    """Lane inputs broadcast from the right."""
    compare(make_neuron(storage), torch.rand(6, 5, 40), torch.rand(v0))


@pytest.mark.parametrize("v0", [(), (5, 1), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("storage", ["scratch", "bits"])
def test_a_step_from_a_number_takes_the_kernel_of_later_steps(v0, storage):
    """So a stream has one kernel, not one more for its first step."""
    x, start = torch.rand(2, 1, *(2,) * (len(v0) == 3), 5, 40), torch.rand(v0)
    compare(make_neuron(storage), x[0], start)
    neuron = make_neuron(storage)
    with torch.no_grad():
        _, (v,) = neuron([x[0]], [start])
        (s,), (v,) = neuron([x[1]], [v])
    expected = eager_lif(x.flatten(0, 1), start)

    assert len(neuron.specs()) == 1
    assert torch.equal(s[0], expected[0][1])
    assert torch.equal(v, expected[1])


def test_step_inputs_align_behind_time():
    """A step input with fewer dimensions broadcasts to the lanes, with time always first."""
    (s,), (v,) = make_neuron()([torch.ones(4, 40)], [torch.zeros(5, 40)])

    assert s.shape == (4, 5, 40)
    assert v.shape == (5, 40)


def test_convolution_channels():
    """One value a channel is broadcast over an image."""
    compare(make_neuron(), torch.rand(3, 2, 8, 5, 5), torch.rand(8, 1, 1))


def test_outputs_lie_as_the_input_does():
    """A batch-first input gives batch-first outputs and gradients."""
    x = torch.rand(5, 6, 40).transpose(0, 1)
    s = compare(make_neuron(), x, torch.rand(40))

    assert s.stride() == x.stride()


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (4, 0, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("storage", ["scratch", "bits"])
def test_empty(shape, storage):
    """No steps leave the initial state; no lanes leave nothing."""
    x = torch.rand(shape, requires_grad=True)
    v0 = torch.rand(shape[1:], requires_grad=True)
    (s,), (v,) = make_neuron(storage)([x], [v0])
    (s.sum() + v.sum()).backward()

    assert s.shape == shape
    assert torch.equal(v, v0)
    assert torch.equal(x.grad, torch.zeros(shape))
    assert torch.equal(v0.grad, torch.ones(shape[1:]))


def test_large_layer_uses_the_pool_and_streams():
    """A layer larger than the caches gives the same bits."""
    compare(make_neuron(), torch.rand(20, 1 << 17), torch.rand(1 << 17))


def test_special_numbers():
    """NaN and infinity behave as in eager PyTorch."""
    x = torch.tensor([0.5, math.inf, -math.inf, math.nan, 1.0]).repeat(4, 20)
    (s,), (v,) = make_neuron()([x], [torch.zeros(())])
    s_ref, v_ref = eager_lif(x, torch.zeros(()))

    assert torch.equal(s, s_ref)
    torch.testing.assert_close(v, v_ref.expand(100), rtol=0, atol=0, equal_nan=True)


def test_only_wanted_gradients():
    """Inputs that need no gradient get none."""
    x, v0 = torch.rand(3, 8), torch.rand(8, requires_grad=True)
    (s,), _ = make_neuron()([x], [v0])
    s.sum().backward()

    assert x.grad is None
    assert v0.grad is not None


@pytest.mark.parametrize("used", ["s", "v"])
def test_unused_results_have_no_cotangent(used):
    """A result that the loss does not use counts as zero."""
    x, v0 = torch.rand(5, 40), torch.rand(40)
    leaves = [t.clone().requires_grad_() for t in (x, v0, x, v0)]
    (s,), (v,) = make_neuron()([leaves[0]], [leaves[1]])
    s_ref, v_ref = eager_lif(*leaves[2:])
    end, reference = (s, s_ref) if used == "s" else (v, v_ref)
    weight = torch.rand_like(end)
    (end * weight).sum().backward()
    (reference * weight).sum().backward()

    assert torch.equal(leaves[0].grad, leaves[2].grad)
    assert torch.equal(leaves[1].grad, leaves[3].grad)


@pytest.mark.parametrize("reduce", [torch.sum, lambda s: s.sum(0).sum(), lambda s: s.mean(1).sum()])
def test_broadcast_cotangents(reduce):
    """Reductions send cotangents with stride 0."""
    x = torch.rand(5, 3, 40)
    leaves = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    reduce(make_neuron("bits")([leaves[0]], [torch.zeros(40)])[0][0]).backward()
    reduce(eager_lif(leaves[1], torch.zeros(40))[0]).backward()

    assert torch.equal(leaves[0].grad, leaves[1].grad)


def test_in_place_change_of_a_saved_input_is_an_error():
    """Backward recomputes from the inputs, so it notices if they were changed."""
    x = torch.rand(5, 8)
    hidden = x.requires_grad_() * 1.0
    (s,), _ = make_neuron()([hidden], [torch.zeros(8)])
    hidden.add_(1.0)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        s.sum().backward()


def test_second_derivative_is_refused():
    """A gradient of a gradient would silently be wrong."""
    x = torch.rand(5, 8, requires_grad=True)
    (s,), _ = make_neuron()([x], [torch.zeros(8)])
    (gradient,) = torch.autograd.grad(s.sum(), x, create_graph=True)

    with pytest.raises(UnsupportedError, match="cannot be differentiated again") as error:
        gradient.sum().backward()
    assert error.value.code == "unsupported.double-backward"


def test_sources_of_the_kernels_in_use():
    """A layer shows the kernels that its calls asked for."""
    neuron = make_neuron()
    (s,), _ = neuron([torch.rand(3, 8, requires_grad=True)], [torch.zeros(8)])
    s.sum().backward()
    names = [neuron.source(spec).name for spec in neuron.specs()]

    assert names == ["lif_inference", "lif_backward"]


TRANSFORMS = {
    "vmap": lambda f, x: torch.vmap(f)(x[None]),
    "grad": lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_function_transforms_are_refused(transform):
    """Transforms of torch.func are not supported, and never silently wrong."""
    neuron = make_neuron()

    with pytest.raises(UnsupportedError, match=r"torch\.func") as error:
        TRANSFORMS[transform](lambda x: neuron([x], [torch.zeros(8)])[0][0], torch.rand(4, 8))
    assert error.value.code == "unsupported.function-transform"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_forward_mode_is_refused():
    """So are forward-mode derivatives; without a tangent the layer runs."""
    x = torch.rand(4, 8)
    with torch.autograd.forward_ad.dual_level():
        make_neuron()([x], [torch.zeros(8)])
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones(4, 8))

        with pytest.raises(UnsupportedError, match="forward-mode"):
            make_neuron()([dual], [torch.zeros(8)])


def test_tensors_without_data():
    """Meta tensors give the shapes of results."""
    (s,), (v,) = make_neuron()([torch.rand(4, 8, device="meta")], [torch.zeros(8, device="meta")])

    assert (s.shape, v.shape) == ((4, 8), (8,))
    assert s.is_meta


def test_program_without_adjoint():
    """A layer for inference runs, and says so when it is differentiated."""
    x = torch.rand(5, 8, requires_grad=True)
    (s,), _ = Neuron(without_adjoint(lif()))([x], [torch.zeros(8)])

    with pytest.raises(UnsupportedError, match="compiled without gradients"):
        s.sum().backward()


def test_target_torch_is_the_interpreter():
    """The reference runs the same program, with gradients by autograd."""
    x = torch.rand(5, 40)
    (expected,), (v,) = make_neuron()([x], [torch.zeros(40)])
    (s,), (v_torch,) = make_neuron(target="torch")([x], [torch.zeros(40)])

    assert torch.equal(s, expected)
    assert torch.equal(v_torch, v)


def test_oscillator_without_step_input():
    """A neuron without input over time needs to be told T, and may be told its lanes."""
    let = Let("w", Binary(Op.MUL, Var("v"), Const(0.5)))
    start = Input("start", Rank.LANE)
    state = State("v", Var("start"), "w")
    neuron = Neuron(NeuronProgram(Recurrence("decay", (start,), (state,), (let,), ("v",), ("v",))))
    (v,), (final,) = neuron([], [torch.ones(())], length=3, lane_shape=(2, 2))

    assert torch.equal(v, torch.tensor([1.0, 0.5, 0.25])[:, None, None].expand(3, 2, 2))
    assert torch.equal(final, torch.full((2, 2), 0.125))


def test_same_value_twice():
    """One value may be several outputs."""
    let = Let("y", Unary(Op.NEG, Var("x")))
    inputs = (Input("x", Rank.STEP),)
    neuron = Neuron(NeuronProgram(Recurrence("twice", inputs, (), (let,), ("y", "x", "y"))))
    x = torch.rand(3, 5)
    (a, b, c), _ = neuron([x], [])

    assert torch.equal(a, -x)
    assert torch.equal(b, x)
    assert torch.equal(c, -x)


@pytest.mark.parametrize(
    ("x", "v0", "code", "text"),
    [
        (torch.ones(3, 4).half(), torch.ones(4), "launch.dtype", "'x' is float16"),
        (torch.ones(3, 4), torch.ones(4).double(), "launch.dtype", "'x' and 'v0' are float32 and"),
        (torch.ones(3, 4), torch.ones(5), "launch.sizes", r"'v0' has lanes \[5\]"),
        (torch.ones(()), torch.ones(5), "launch.rank", "'x' has no time axis"),
        (torch.eye(3).to_sparse(), torch.ones(3), "launch.layout", "'x' is not a plain dense"),
    ],
    ids=["dtype", "two-dtypes", "sizes", "rank", "layout"],
)
def test_arguments_are_checked(x, v0, code, text):
    """A message names the argument and both values."""
    with pytest.raises(LaunchError, match=text) as error:
        make_neuron()([x], [v0])
    assert error.value.code == code


def test_number_of_arguments_is_checked():
    """A message says how many inputs there are."""
    with pytest.raises(LaunchError, match="got 2 step inputs and 0 lane inputs"):
        make_neuron()([torch.ones(3, 4)] * 2, [])


def test_lengths_are_checked():
    """A length that differs from the tensors is an error."""
    with pytest.raises(LaunchError, match="'x' has 3 time steps, where there are 4"):
        make_neuron()([torch.ones(3, 4)], [torch.ones(4)], length=4)
