"""Before any test imports numpy: one thread for each numeric library, since the test runner uses the cores itself.

And before any imports triton: kernels interpreted, where there is no GPU. Fixtures that several files share.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Triton decides when it is imported whether kernels are interpreted: without a GPU they are, in every test.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Layers begin with the same weights whatever ran before in this process: torch draws them from one generator."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write into a new tensor is NaN, not the zero that fresh memory often holds."""
    import torch

    real = torch.Tensor.new_empty

    def new_empty(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        fresh = real(self, *args, **kwargs)
        return fresh.copy_(torch.full_like(fresh, float("nan"))) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


@pytest.fixture(params=[1, 2, 3])
def torch_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch uses that many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
