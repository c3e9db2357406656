"""A device that is only pretended, for machines without an accelerator.

`pretended(tensor)` lives on the device "meta" as far as anybody can see, and has its values in
plain memory all the same. While `guarded()` is open every operation is looked at: one that mixes a
pretended tensor with a plain one raises `MixedDevices`, where CUDA would say "Expected all tensors
to be on the same device". What CUDA allows is allowed: plain scalars (no dimensions), plain index
tensors into a pretended tensor, and copies from one to the other.

The wrapper is a tensor subclass of torch's own kind ("wrapper subclass": no storage of its own,
`__torch_dispatch__` sees what reaches it), and a mode, which also sees what makes tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
PLAIN = torch.device("cpu")

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


class MixedDevices(AssertionError):
    """Tensors of two devices met in one operation."""


class Pretended(Tensor):
    """Values in `inner`; everything else as if they were on `DEVICE`."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=False,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.inner!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check, run on the values, and wrap what belongs on the pretended device."""
    found = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    pretends = any(isinstance(x, Pretended) for x in found)
    plain = [x for x in found if not isinstance(x, Pretended) and x.dim() > 0]
    allowed = func in COPIES or (func in INDEXED and isinstance(args[0], Pretended))
    if pretends and plain and not allowed:
        raise MixedDevices(f"{func}: {[(type(x).__name__, tuple(x.shape)) for x in found]}")
    wanted = kwargs.get("device")
    on_device = pretends if wanted is None else torch.device(wanted) == DEVICE
    if func is aten.copy_.default:
        on_device = isinstance(args[0], Pretended)
    inner_args, inner_kwargs = tree_map(
        lambda x: x.inner if isinstance(x, Pretended) else x, (args, kwargs)
    )
    if wanted is not None:
        inner_kwargs = {**inner_kwargs, "device": PLAIN}
    made = func(*inner_args, **inner_kwargs)
    if not on_device:
        if func is aten._to_copy.default and made is inner_args[0]:
            made = made.clone()
        return made
    wrapped = tree_map(lambda x: Pretended(x) if isinstance(x, Tensor) else x, made)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


class _Watch(TorchDispatchMode):
    """Sees every operation, those that make tensors of nothing included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """What knows the device "meta" too well: torch.tensor leaves the values out, tolist refuses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("device")
        if func is torch.tensor and wanted is not None and torch.device(wanted) == DEVICE:
            grad = kwargs.pop("requires_grad", False)
            made = pretended(torch.tensor(*args, **{**kwargs, "device": PLAIN}))
            return made.requires_grad_(grad)
        if func is Tensor.tolist and isinstance(args[0], Pretended):
            return args[0].inner.tolist()
        return func(*args, **kwargs)


def pretended(tensor: Tensor) -> Tensor:
    """The same values on the pretended device."""
    return Pretended(tensor.detach())


def pretend_model(model: nn.Module) -> nn.Module:
    """Move every parameter and buffer of a model there, in place; shared ones stay shared."""
    known: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(pretended(parameter), requires_grad=False)
                module._parameters[name] = known[id(parameter)]  # type: ignore[assignment]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = pretended(buffer)
                if name in module.__dict__:
                    module.__dict__[name] = module._buffers[name]
        for name, value in list(vars(module).items()):  # plain attributes (original_inv_freq)
            if isinstance(value, Tensor) and not isinstance(value, Pretended):
                setattr(module, name, pretended(value))
    return model


@contextmanager
def guarded() -> Iterator[None]:
    """While open, every operation is checked, and tensors can be made on the pretended device."""
    with _Literals(), _Watch():
        yield
