"""Recipes instead of tensors: what is saved, how long, and what happens when a tensor was written to."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from veneer.engine import recompute
from veneer.engine.recompute import RecomputeContext, make_recomputable, recomputes_products


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return []


def recomputable(
    name: str, function: Callable[..., Tensor], calls: list[str], products: int = 0
) -> Callable[..., Tensor]:
    """An operation whose output is recomputable, and that lists its recomputations."""

    def again(*inputs: Tensor) -> Tensor:
        calls.append(name)
        return function(*inputs)

    def run(*inputs: Tensor) -> Tensor:
        return make_recomputable(function(*inputs), again, *inputs, products=products)

    return run


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def test_a_saved_output_is_recomputed_once_for_all_views(calls: list[str]) -> None:
    x, w = leaf(4, 6), leaf(6, 4)
    norm = recomputable("norm", lambda x: functional.layer_norm(x, (6,)), calls)

    def loss(norm: Callable[[Tensor], Tensor]) -> Tensor:
        y = norm(x * 1)
        # three that save it: a product, a power of a transposed view, a function of a slice
        return (y @ w).sum() + y.T.pow(3).sum() + y[1:, ::2].exp().mul(y[1:, ::2]).sum()

    expected = torch.autograd.grad(loss(lambda x: functional.layer_norm(x, (6,))), [x, w])
    with RecomputeContext(products=False):
        found = loss(norm)
    assert calls == []
    gradients = torch.autograd.grad(found, [x, w])
    assert calls == ["norm"]
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))


def test_the_output_itself_is_freed(calls: list[str]) -> None:
    with RecomputeContext(products=False):
        y = recomputable("double", lambda x: x * 2, calls)(leaf(8) * 1)
        z = y.exp().sum() + y.pow(2).sum()
    held = weakref.ref(y.untyped_storage())
    del y
    assert held() is None
    z.backward()


def test_recipes_refer_to_recipes(calls: list[str]) -> None:
    x = leaf(5)
    with RecomputeContext(products=False):
        h = recomputable("first", lambda x: x * 3, calls)(x * 1)
        y = recomputable("second", torch.sin, calls)(h)
        z = (y * y).sum() + h.pow(2).sum()
    del h, y
    z.backward()
    assert sorted(calls) == ["first", "second"]
    torch.testing.assert_close(x.grad, (2 * torch.sin(3 * x) * torch.cos(3 * x) * 3 + 18 * x).detach())


def test_without_a_recipe_tensors_are_saved() -> None:
    x = leaf(3)
    with RecomputeContext(products=False):
        y = (x * 2).exp()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * (2 * x.detach()).exp())


def test_an_output_that_was_written_to_is_saved_itself(calls: list[str]) -> None:
    x = leaf(4)
    with RecomputeContext(products=False):
        y = recomputable("double", lambda x: x * 2, calls)(x * 1)
        y += 1
        z = y.pow(2).sum()
    z.backward()
    assert calls == []
    torch.testing.assert_close(x.grad, (4 * (2 * x + 1)).detach())


def test_an_input_that_was_written_to_is_an_error_as_in_autograd(calls: list[str]) -> None:
    with RecomputeContext(products=False):
        x = leaf(4) * 1
        z = recomputable("double", lambda x: x * 2, calls)(x).pow(2).sum()
        x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()


def test_a_saved_tensor_that_was_written_to_is_an_error_as_in_autograd() -> None:
    with RecomputeContext(products=False):
        x = leaf(4) * 1
        z = x.pow(2).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()


def test_an_operation_in_place_gets_no_recipe(calls: list[str]) -> None:
    x = leaf(4)
    with RecomputeContext(products=False):
        y = recomputable("relu", functional.relu_, calls)(x * 1)
        z = y.pow(2).sum()
    z.backward()
    assert calls == []
    torch.testing.assert_close(x.grad, 2 * functional.relu(x.detach()))


def test_there_is_no_recipe_outside_or_where_no_gradient_goes(calls: list[str]) -> None:
    double = recomputable("double", lambda x: x * 2, calls)
    x = leaf(4)
    outside = double(x * 1)
    with RecomputeContext(products=False):
        constant = double(x.detach())
    for y in (outside, constant):
        assert not hasattr(y.untyped_storage(), recompute._ATTRIBUTE)


def test_only_one_product_is_on_the_way(calls: list[str]) -> None:
    product = recomputable("product", lambda x, w: x @ w, calls, products=1)
    x, w = leaf(3, 3) * 1, leaf(3, 3)
    with RecomputeContext(products=True):
        assert recomputes_products(x)
        y = product(x, w)
        assert not recomputes_products(y)
        assert not recomputes_products(recomputable("sin", torch.sin, calls)(y))
    with RecomputeContext(products=False):
        assert not recomputes_products(x)
    assert not recomputes_products(x)


def test_a_block_that_is_checkpointed_has_no_recipes(calls: list[str]) -> None:
    """Its tensors go to other hooks, and what is made last in it must not hold what came before."""
    double = recomputable("double", lambda x: x * 2, calls)
    x = leaf(6)
    inner: list[weakref.ref[object]] = []

    def block(x: Tensor) -> Tensor:
        h = x.exp()
        inner.append(weakref.ref(h.untyped_storage()))
        return double(h)

    with RecomputeContext(products=True):
        y = checkpoint(block, x, use_reentrant=False)
        gc.collect()
        assert inner[0]() is None
        z = y.pow(2).sum()
    z.backward()
    torch.testing.assert_close(x.grad, 8 * (2 * x.detach()).exp())


def test_no_recipe_outlives_the_forward_pass(calls: list[str]) -> None:
    with RecomputeContext(products=False):
        x = leaf(6) * 1
        held = weakref.ref(x.untyped_storage())
        y = recomputable("add", lambda x: x + 1, calls)(x)
        del x
        assert held() is not None
    assert held() is None
    del y


def test_what_was_recomputed_is_freed_with_the_graph(calls: list[str]) -> None:
    made: list[weakref.ref[object]] = []

    def watch(x: Tensor) -> Tensor:
        y = x * 2
        made.append(weakref.ref(y.untyped_storage()))
        return y

    x = leaf(6)
    with RecomputeContext(products=False):
        z = make_recomputable(x * 2, watch, x * 1).pow(2).sum()
    z.backward(retain_graph=True)
    assert made[0]() is not None
    z.backward()
    assert len(made) == 1 and made[0]() is None


def test_recomputed_under_the_autocast_of_the_first_time(calls: list[str]) -> None:
    x, w = leaf(4, 4), torch.randn(4, 4)
    product = recomputable("product", torch.mm, calls, products=1)
    gradients = []
    for with_recipe in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16), RecomputeContext(products=True):
            y = product(x * 1, w) if with_recipe else torch.mm(x * 1, w)
            z = y.float().pow(2).sum() + y.exp().sum()
        with torch.autocast("cpu", dtype=torch.float16):
            gradients.append(torch.autograd.grad(z, x)[0])
    assert torch.equal(*gradients)


def test_contexts_may_be_nested(calls: list[str]) -> None:
    x = leaf(3)
    with RecomputeContext(products=False):
        with RecomputeContext(products=True):
            y = recomputable("double", lambda x: x * 2, calls)(x * 1).pow(2)
        z = recomputable("triple", lambda x: x * 3, calls)(y).pow(2).sum()
    z.backward()
    assert sorted(calls) == ["double", "triple"]
    torch.testing.assert_close(x.grad, (4 * 9 * 16 * x**3).detach())
