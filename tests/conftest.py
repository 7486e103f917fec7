"""What all tests share: a kernel cache of their own, and random numbers of their own.

Property tests draw the same examples in every run, so that a run tells what a change broke.  `make
fuzz` draws new ones.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build kernels into a fresh cache, so that no test depends on what an earlier run left.

    Processes that run tests side by side share it: a kernel of several tests is built once.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNNCC_CACHE_DIR", str(folder))
        yield folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give each test the same random numbers in every run, whatever ran before it."""
    torch.manual_seed(zlib.crc32(item.nodeid.encode()))
