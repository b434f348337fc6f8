"""What an engine hangs on a module's forward passes, taken off when it lets go of the module."""

from collections.abc import Callable

from torch import nn

_KINDS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_backward_pre_hooks", "_backward_hooks"),
)


def remembered_hooks(module: nn.Module) -> Callable[[], None]:
    """A function that gives every submodule the hooks and the `forward` back that it has now.

    DeepSpeed, the pipeline and the graphs leave theirs, which would act on another engine's passes.
    """
    before = [
        (item, {kind: dict(getattr(item, kind)) for kind in _KINDS}, item.__dict__.get("forward"))
        for item in module.modules()
    ]

    def put_back() -> None:
        for item, hooks, forward in before:
            for kind, held in hooks.items():
                found = getattr(item, kind)
                found.clear()
                found.update(held)
            item.__dict__.pop("forward", None)
            if forward is not None:
                item.forward = forward

    return put_back
