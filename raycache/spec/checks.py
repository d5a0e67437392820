"""Checking plain data against the models, and saying where it is wrong: file, line, path, nearest right name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from raycache.errors import SpecError
from raycache.spec.fields import FieldError, SpecModel
from raycache.spec.yamltree import Path, Tree

Model = TypeVar("Model", bound=SpecModel)


@dataclass(frozen=True)
class Place:
    """Where a document's values came from.

    Args:
        tree: the YAML document.
        base: path of the object in it; not empty for an item of a `kind: List`.
        moved: values that stand elsewhere in the file than in the data that is checked (Fluid's fields, after
            their translation): path in the data to path in the object.
    """

    tree: Tree
    base: Path = ()
    moved: dict[Path, Path] = field(default_factory=dict)

    def origin(self, path: Path) -> Path:
        """Path in the file of a value at `path` in the data."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.moved:
                path = self.moved[path[:length]] + path[length:]
                break
        return self.base + path

    def line(self, path: Path = ()) -> int:
        """Line in the file of a value at `path` in the data."""
        return self.tree.line(self.origin(path))

    def where(self, path: Path = ()) -> str:
        """`file.yaml:12: spec.mounts[0].mountPoint`."""
        return self.tree.where(self.origin(path))

    def error(self, what: str, path: Path = (), hint: str = "") -> SpecError:
        """A SpecError about the value at `path`."""
        return SpecError(what, where=self.where(path), hint=hint)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.7) -> str | None:
    """The known name that was probably meant: the same but for case and punctuation, else the closest.

    Args:
        cutoff: least similarity, 0 to 1, by `difflib`'s measure.
    """
    candidates = sorted(set(known))
    folded = {re.sub(r"[^a-z0-9]", "", candidate.lower()): candidate for candidate in candidates}
    key = re.sub(r"[^a-z0-9]", "", name.lower()[:100])
    if key in folded:
        return folded[key]
    close = difflib.get_close_matches(key, folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def name_hint(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one, else all of them."""
    listed = sorted(set(known))
    meant = nearest(name, listed)
    if meant:
        return f"did you mean {meant!r}?"
    return f"known here: {', '.join(listed)}" if listed else ""


def unknown_field(place: Place, path: Path, known: Iterable[str]) -> SpecError:
    """The error for a field, the last step of `path`, that does not exist."""
    name = str(path[-1])
    return place.error(f"unknown field {name!r}", path, name_hint(name, known))


def validate(model: type[Model], data: Any, place: Place) -> Model:
    """`data`, as the model it describes.

    Raises:
        SpecError: for the first thing in the file that is wrong. It neither shows nor carries any other value than
            names, sizes and the like: not a secret.
    """
    clean = _known_fields(model, data, (), place)
    failure: SpecError
    try:
        return model.model_validate(clean)
    except ValidationError as error:
        failure = _first_problem(error, clean, place)
    # Raised out here: inside the handler it would carry pydantic's error, which holds the input, as its context.
    raise failure


def _known_fields(model: type[BaseModel], data: Any, path: Path, place: Place) -> Any:
    """`data` less the fields that are null, which Kubernetes takes as not set. Only YAML's names are known."""
    if not isinstance(data, dict):
        return data
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    result = {}
    for key, value in data.items():
        here = (*path, key)
        if key not in fields:
            raise unknown_field(place, here, fields)
        if value is None:
            continue
        inner = submodel(fields[key])
        if inner is None:
            result[key] = value
        elif isinstance(value, list):
            result[key] = [_known_fields(inner, item, (*here, i), place) for i, item in enumerate(value)]
        else:
            result[key] = _known_fields(inner, value, here, place)
    return result


def submodel(info: FieldInfo) -> type[BaseModel] | None:
    """The model inside a field's type (`Model`, `list[Model]`, `Model | None`), if there is one."""
    pending = [info.annotation]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        pending.extend(get_args(kind))
    return None


def _first_problem(error: ValidationError, data: Any, place: Place) -> SpecError:
    problems = [_problem(item, data) for item in error.errors(include_url=False)]
    # Each member of a union complains; who got furthest into the value understood it best.
    paths = [path for path, _, _ in problems]
    telling = [p for p in problems if not any(len(o) > len(p[0]) and o[: len(p[0])] == p[0] for o in paths)]
    path, what, hint = min(telling or problems, key=lambda problem: place.line(problem[0]))
    return place.error(what, path, hint)


_NEEDS = {
    "string_type": ("must be a string", "put it in quotes"),
    "int_type": ("must be an integer", ""),
    "bool_type": ("must be true or false", "without quotes"),
    "list_type": ("must be a list", "begin each item with '- '"),
    "dict_type": ("must be a mapping", ""),
    "model_type": ("must be a mapping", ""),
    "model_attributes_type": ("must be a mapping", ""),
    "string_too_short": ("may not be empty", ""),
}


def _problem(item: Mapping[str, Any], data: Any) -> tuple[Path, str, str]:
    """Path, what and hint of one of pydantic's complaints. Its `input` is used, never shown."""
    kind = item["type"]
    path = _data_path(item["loc"], data, kind == "missing")
    context = item.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, SpecError):
        return (*path, *(cause.at if isinstance(cause, FieldError) else ())), cause.what, cause.hint
    if kind == "missing":
        return path, "is required", ""
    if kind == "literal_error":
        return path, f"must be {context['expected']}", _literal_hint(item["input"], context["expected"])
    if kind == "too_short":
        return path, f"must have at least {context['min_length']} item", ""
    if kind == "greater_than_equal":
        return path, f"must be at least {context['ge']}", ""
    if kind in _NEEDS:
        what, hint = _NEEDS[kind]
        nested = isinstance(item["input"], dict | list)
        return path, what, "" if nested and kind == "string_type" else hint
    return path, f"is not valid: {item['msg']}", ""


def _literal_hint(value: object, expected: str) -> str:
    if not isinstance(value, str):
        return "put it in quotes" if not isinstance(value, dict | list) else ""
    meant = nearest(value, re.findall(r"'([^']*)'", expected))
    return f"did you mean {meant}?" if meant else ""


def _data_path(loc: tuple[int | str, ...], data: Any, missing: bool) -> Path:
    """Pydantic's location less the steps that are not in the data (which member of a union, `[key]`)."""
    path: list[str | int] = []
    for index, step in enumerate(loc):
        if missing and index == len(loc) - 1:
            path.append(step)
            continue
        known = step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int)
        if known:
            path.append(step)
            data = data[step]
    return tuple(path)
