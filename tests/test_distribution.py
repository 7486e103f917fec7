"""Networks whose time is split over processes compute what one process computes.

The processes are started once, for all cases of `tests.split_networks`.
"""

from __future__ import annotations

import json
from multiprocessing import get_context
from pathlib import Path

import pytest
from torch import multiprocessing

import snncc
from tests.models import Feedforward
from tests.split_networks import CASES, SIZE, main


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Run all cases and return for each of them the errors of its processes."""
    folder = tmp_path_factory.mktemp("ranks")
    get_context("forkserver").set_forkserver_preload(["tests.split_networks"])
    multiprocessing.start_processes(main, (str(folder),), nprocs=SIZE, start_method="forkserver")
    seen = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(SIZE)]
    return {name: [each[name] for each in seen if name in each] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_processes_agree_with_one(outcomes: dict[str, list[str]], name: str) -> None:
    """No process of a case has anything to object."""
    assert outcomes[name] == [""] * CASES[name].size


def test_what_is_split_is_a_compiled_model_in_a_group() -> None:
    """A serial model, a number of blocks that is none, and a missing group are refused."""
    fast = snncc.compile(Feedforward())
    wrong = [
        (lambda: snncc.distribute(Feedforward()), "not a compiled model"),
        (lambda: snncc.distribute(fast, blocks=0), "blocks"),
        (lambda: snncc.distribute(fast), "There is no process group."),
    ]
    for action, text in wrong:
        with pytest.raises(snncc.OptionError, match=text) as caught:
            action()
        assert caught.value.code == "option.distribute"
