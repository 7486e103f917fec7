"""Modules and tools of torch that models are built with."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snncc.frontend.capture import capture
from snncc.frontend.session import is_recording
from snncc.nn import ATan
from tests.frontend.recordings import Net, check, names, randn

SUMS = 1e-5
SMALL, LARGE = (randn(2, 3, 8),), (randn(7, 3, 8),)
TOKENS = [(torch.arange(2 * n).view(n, 2) % 10,) for n in (2, 5)]

LAYERS = nn.Sequential(
    nn.LayerNorm(8), nn.GELU(), nn.BatchNorm1d(3), nn.PReLU(), nn.Conv1d(3, 4, 3, padding=1),
    nn.GroupNorm(2, 4), nn.AdaptiveAvgPool1d(4), nn.Upsample(scale_factor=2), nn.Flatten(),
    nn.Linear(32, 6), nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True),
    nn.Dropout(0.5), nn.Softmax(-1), nn.Identity(),
)  # fmt: skip


def attention(self: Any, tokens: Tensor) -> Tensor:
    x = self.embed(tokens)
    return self.encoder(self.attend(x, x, x)[0])


def recurrent(self: Any, x: Tensor) -> Any:
    out, (h, c) = self.lstm(x)
    return out, self.gru(h[0], c[0])


def checkpointed(self: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda a: torch.sigmoid(self.fc(a)) * a, x, use_reentrant=False)


def resonator(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.zeros(x.shape[1:], dtype=torch.complex64)
    decay = torch.polar(torch.tensor(0.9), self.angle)
    for t in range(2):
        z = z * decay + x[t]
    return z.real, z.imag


def delayed(self: Any, x: Tensor) -> Tensor:
    self.line.clear()
    for t in range(x.shape[1]):
        self.line.append(x[:, t])
    return self.line[0] + 2 * self.line[-1]


def copied(self: Any, x: Tensor) -> Tensor:
    y = copy.deepcopy(x.detach())
    y += 1
    return y * x


def recordable() -> dict[str, tuple[nn.Module, Any, Any]]:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    hooked = nn.Linear(8, 8)
    hooked.register_forward_hook(lambda module, args, out: out * 2)
    attending = Net(
        attention,
        embed=nn.Embedding(10, 6),
        attend=nn.MultiheadAttention(6, 2, batch_first=True),
        encoder=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
    )
    parts = {"lstm": nn.LSTM(8, 4, batch_first=True), "gru": nn.GRUCell(4, 4)}
    return {
        "layers": (copy.deepcopy(LAYERS), SMALL, LARGE),
        "layers in evaluation": (copy.deepcopy(LAYERS).eval(), SMALL, LARGE),
        "parametrized": (nn.Sequential(normed, spectral), SMALL, LARGE),
        "forward hook": (hooked, SMALL, LARGE),
        "attention": (attending, *TOKENS),
        "recurrent": (Net(recurrent, **parts), SMALL, LARGE),
        "checkpoint": (Net(checkpointed, fc=nn.Linear(8, 8)), SMALL, LARGE),
        "complex": (Net(resonator, angle=nn.Parameter(torch.tensor(0.3))), SMALL, LARGE),
        "deque": (Net(delayed, line=deque(maxlen=2)), SMALL, LARGE),
        "deepcopy": (Net(copied), SMALL, LARGE),
    }


@pytest.mark.parametrize("name", list(recordable()))
def test_module_replays(name: str) -> None:
    """Layers, hooks, parametrisations and containers need no special care by the user."""
    model, small, large = recordable()[name]

    check(model, *small, again=large, gradient_error=SUMS)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_is_transparent(reentrant: bool) -> None:
    """A checkpoint with a spike function inside records what its function records alone."""
    spike = ATan()

    def step(x: Tensor) -> Tensor:
        return F.dropout(spike(x * 2 - 1), 0.5)

    plain = capture(step, (randn(4, 3),), {})
    kept = capture(lambda x: checkpoint(step, x, use_reentrant=reentrant), (randn(4, 3),), {})

    assert names(plain) == names(kept)


def test_layer_with_a_dropout_of_its_own_is_impure() -> None:
    """It draws random numbers, so its place among the draws is kept."""
    layer = nn.MultiheadAttention(4, 2, dropout=0.5)
    tape = capture(lambda x: layer(x, x, x)[0], (randn(3, 2, 4),), {})

    assert [n.target.__name__ for n in tape.graph.nodes if n.meta.get("impure")] == [
        "multi_head_attention_forward"
    ]


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.enable_grad, torch.inference_mode, lambda: torch.device("cpu")],
)
def test_contexts_leave_no_nodes(context: Callable[[], Any]) -> None:
    """A context of the user's is not recorded, and ends where it ends."""

    def model(x: Tensor) -> Tensor:
        with context():
            y = x * 2
        return y + x

    check(model, randn(3))


def test_code_can_tell_that_it_is_recorded() -> None:
    """``is_recording`` is true within a recorded run and nowhere else."""

    def model(x: Tensor) -> Tensor:
        return x * 2 if is_recording() else x

    tape = capture(model, (randn(3),), {})

    assert len(tape.graph.nodes) == 3
    assert not is_recording()
