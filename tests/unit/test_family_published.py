"""Published architectures: data beside their families, planned by name, and not trained without their weights."""

from __future__ import annotations

import pytest

from tests.errors import raises_code
from veneer.config.base_name import BaseName
from veneer.family.loading import load_base
from veneer.family.pipeline_folder import INDEX
from veneer.family.published import PUBLISHED, read_published
from veneer.family.registry import family_class


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_has_all_that_its_family_needs(name: str) -> None:
    published = read_published(name)
    family = family_class(published.pipeline)
    second = {name for name in family.optional_parts if name in family.expert_parts.get("low_noise", {})}
    assert (set(published.parts) - {INDEX}) | second == set(family.config_names())
    assert published.title and published.source and published.hub.count("/") == 1


@pytest.mark.parametrize("base", PUBLISHED)
def test_what_has_no_weights_is_not_loaded(base: str) -> None:
    with raises_code("base.plan_only"):
        load_base(base)


def test_an_expert_of_what_has_no_weights_is_not_loaded() -> None:
    with raises_code("base.plan_only"):
        load_base(BaseName("wan22-t2v-a14b", expert="low_noise"))


def test_the_message_says_where_the_weights_are() -> None:
    with raises_code("base.plan_only") as caught:
        load_base("sd15")
    assert str(caught.value) == (
        "sd15: names the architecture of Stable Diffusion 1.5, which has no weights and can only be planned; "
        "give its weights: a folder, or base=stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
