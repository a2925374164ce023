"""Who looks on in torch: transforms, forward-mode derivatives and modes, which see plain torch operations alone.

Compiled code reads memory and would pass all of them by: derivatives would be lost without a word.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

__all__ = ["carried", "watched"]

_PLAIN = torch.Tensor.__torch_dispatch__


def watched(*tensors: torch.Tensor) -> bool:
    """Whether what happens to these must be plain torch operations.

    So it is under a transform of ``torch.func`` (grad, vmap, jvp), in forward-mode differentiation, in a mode that sees
    each operation, while a trace is taken, and for tensors of a class that handles operations itself, such as those
    without data of FakeTensorMode.
    """
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return True
    # Dynamo knows neither of these functions, and what it traces is looked at by it alone.
    if not is_dynamo_compiling() and (torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_tracing()):
        return True
    return bool(tensors) and any(type(x).__torch_dispatch__ is not _PLAIN for x in tensors)


def carried(x: torch.Tensor) -> bool:
    """Whether a transform of ``torch.func`` has hold of this very tensor, or it has a forward-mode derivative."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    dual: Any = forward_ad.unpack_dual
    return forward_ad._current_level >= 0 and dual(x).tangent is not None
