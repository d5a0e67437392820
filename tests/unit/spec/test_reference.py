"""docs/spec.md says what the models say."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from raycache.spec import models, reference
from raycache.spec.fields import SpecModel
from raycache.spec.options import canonical

PAGE = Path(__file__).parents[3] / "docs" / "spec.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.render(), (
        "run: python -m raycache.spec.reference > docs/spec.md"
    )


def all_models() -> list[type[BaseModel]]:
    return [item for item in vars(models).values() if isinstance(item, type) and issubclass(item, SpecModel)]


@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.__name__)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    if model in (SpecModel, models.Resource):
        return
    page = reference.render()
    for name, info in model.model_fields.items():
        assert info.description, f"{model.__name__}.{name}"
        assert f"| `{info.alias or name}` |" in page


def test_the_names_of_options_that_the_page_gives_are_understood() -> None:
    rows = [row.split("|") for row in reference.render().partition("## Options of a mount")[2].splitlines()]
    table = [row for row in rows if len(row) == 5 and row[1].strip().startswith("`")]
    assert len(table) == 9
    for row in table:
        meaning = canonical(row[1].strip().strip("`"))
        for name in row[2].split("`")[1::2]:
            assert canonical(name) == meaning or (meaning, canonical(name)) == ("allow_http", "tls")
