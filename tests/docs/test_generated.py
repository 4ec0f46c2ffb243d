"""Pages that are generated are what the generators write now."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory_embed.recipe.conversions import TOOLS
from tests.docs.generated import GENERATED
from tests.docs.moves import EXAMPLES
from tests.docs.site import DOCS


@pytest.mark.parametrize(("name", "page"), GENERATED.items(), ids=GENERATED)
def test_a_generated_page_is_current(name: str, page: Callable[[], str]) -> None:
    assert (DOCS / name).read_text("utf-8") == page(), "run `make docs`"


def test_every_tool_that_is_converted_has_a_page() -> None:
    assert EXAMPLES.keys() == TOOLS.keys()
