"""Give a module another ``forward`` by an attribute of the instance: its class stays what it is.

The attribute is found before the class's method, as with accelerate's hooks. It refers to its module weakly, so that a
network nobody holds is freed at once, and a copy's refers to the copy: made by ``copy.deepcopy``, by ``pickle``, or by
``torch.nn.DataParallel``, which copies attributes. A shallow copy (``copy.copy``) shares its module's.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, ClassVar, cast
from weakref import ref

from torch import nn

__all__ = ["InstanceForward", "has_foreign_forward", "installed_forward", "is_prepared", "uninstall"]

_INSTALLED = "_veneer_forward"
"""The attribute of a module that holds the ``forward`` it was given, be it wrapped by others meanwhile."""
_REPLICATE = "_replicate_for_data_parallel"


class InstanceForward:
    """A module's other ``forward``, until it is uninstalled; whoever still calls it then gets the module's own.

    Subclasses say in ``__call__`` what it does.

    Args:
        module: the module; held weakly.
    """

    __slots__ = ("_before", "_class", "_module")
    _settings: ClassVar[tuple[str, ...]] = ()
    """Attributes of a subclass, which a copy has too."""

    def __init__(self, module: nn.Module) -> None:
        self._module = ref(module)
        self._class: type[nn.Module] | None = type(module)
        self._before: Any = None if _is_plain(module) else vars(module)["forward"]

    def install(self) -> None:
        """Make this the ``forward`` of its module."""
        attributes = vars(self.module())
        attributes["forward"] = attributes[_INSTALLED] = self
        attributes[_REPLICATE] = self._replicate

    def is_active(self, module: nn.Module) -> bool:
        """Tell whether it is installed, and the module's class still the one that it is for.

        A parametrisation, for one, changes the class of a layer, and what its weight is.
        """
        return type(module) is self._class

    def module(self) -> nn.Module:
        """Return the module.

        Raises:
            RuntimeError: it is gone, and a shallow copy of it is called.
        """
        module = self._module()
        if module is None:
            raise RuntimeError("a shallow copy of a prepared module that is gone was called: use copy.deepcopy")
        return module

    def original(self) -> Callable[..., Any]:
        """Return the ``forward`` that the module had: its class's, or one that somebody else had set."""
        module = self.module()
        return MethodType(type(module).forward, module) if self._before is None else cast(Any, self._before)

    def retire(self) -> None:
        """Put back what was there before, wherever the module's attributes still have this one."""
        self._class, attributes = None, vars(self.module())
        for name in [name for name, value in attributes.items() if value is self]:
            if name == "forward" and self._before is None:
                del attributes[name]
            else:  # such as accelerate's _old_forward
                attributes[name] = self.original()

    @property
    def before(self) -> object:
        """The ``forward`` that somebody else, or another of this kind, had set; None: it was the class's."""
        return self._before

    def _replicate(self) -> nn.Module:
        """Do what ``nn.Module._replicate_for_data_parallel`` does, with a forward for the replica."""
        module = self.module()
        replica = cast(nn.Module, type(module)._replicate_for_data_parallel(cast(Any, module)))
        self._copy_for(replica).install()
        return replica

    def _copy_for(self, module: nn.Module) -> InstanceForward:
        before = self._before._copy_for(module) if isinstance(self._before, InstanceForward) else self._before
        return _restore(type(self), module, self._class, before, self._state())

    def _state(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._settings)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it be copied and pickled with its module, for the copy."""
        return _restore, (type(self), self._module(), self._class, self._before, self._state())


def _restore(
    kind: type[InstanceForward],
    module: nn.Module,
    cls: type[nn.Module] | None,
    before: object,
    settings: tuple[Any, ...],
) -> InstanceForward:
    """Make a copy; the module may have no attributes yet."""
    forward = kind.__new__(kind)
    forward._module, forward._class, forward._before = ref(module), cls, before
    for name, value in zip(kind._settings, settings, strict=True):
        setattr(forward, name, value)
    return forward


def _is_plain(module: nn.Module) -> bool:
    """Tell whether a module's ``forward`` is its class's, be it as an attribute, which accelerate's hooks leave."""
    forward = vars(module).get("forward")
    if isinstance(forward, InstanceForward):
        return forward._class is None
    is_own = isinstance(forward, MethodType) and forward.__self__ is module
    return forward is None or (is_own and forward.__func__ is type(module).forward)


def has_foreign_forward(module: nn.Module) -> bool:
    """Tell whether somebody else has set the ``forward`` of a module, or wrapped ours."""
    return not isinstance(vars(module).get("forward"), InstanceForward) and not _is_plain(module)


def installed_forward(module: nn.Module) -> InstanceForward | None:
    """Return the outermost forward of ours that a module was given."""
    return cast("InstanceForward | None", vars(module).get(_INSTALLED))


def is_prepared(network: nn.Module) -> bool:
    """Tell whether a network, or a part of it, is prepared."""
    return any(installed_forward(module) is not None for module in network.modules())


def uninstall(module: nn.Module) -> None:
    """Give a module its own ``forward`` back; nothing happens to one that has it."""
    forward: object = vars(module).pop(_INSTALLED, None)
    if forward is not None:
        vars(module).pop(_REPLICATE, None)
    while isinstance(forward, InstanceForward):
        forward.retire()
        forward = forward.before
