"""The command line: explain and verify of a factory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m snncc`` in the root of the checkout."""
    command = [sys.executable, "-m", "snncc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("explain", "tests.models:feedforward"), 0, "fused time"),
        (("explain", "tests.models:branching"), 1, "capture.tensor-dependent-branch"),
        (("verify", "tests.models:feedforward"), 0, "equivalent"),
        (("verify", "tests.models:branching"), 2, "torch.where"),
        (("verify", "tests.models"), 2, "option.factory"),
        (("verify", "tests.models:absent"), 2, "absent"),
    ],
    ids=["explain", "explain-refused", "verify", "verify-refused", "no-factory", "absent"],
)
def test_command(arguments: tuple[str, ...], status: int, text: str) -> None:
    """The exit status tells the outcome, and the output says why."""
    done = run(*arguments)

    assert done.returncode == status, done.stderr
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
