"""Spec files: YAML, several documents in one, raycache's own and Fluid's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from raycache.errors import NotFoundError, SpecError
from raycache.spec import fluid
from raycache.spec.checks import Place, name_hint, validate
from raycache.spec.models import API_VERSION, KINDS, Resource, Secret
from raycache.spec.yamltree import Tree, parse_trees

SUFFIXES = (".yaml", ".yml", ".json")
"""What `load_files` takes from a directory. JSON is YAML too."""

# kubectl keeps the whole applied object here: for a Secret, its values.
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True)
class Document:
    """One object of a spec file.

    Args:
        kind: `Dataset`, `CacheRuntime`, `DataLoad` or `Secret`; a Fluid document has the kind it was mapped to.
        name: `metadata.name`.
        namespace: `metadata.namespace`.
        model: the object.
        source: file it came from.
        line: line it begins on.
        warnings: what is in the file and has no effect; each names its place.
    """

    kind: str
    name: str
    namespace: str
    model: Resource
    source: str = "<string>"
    line: int = 1
    warnings: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """`file.yaml:12`."""
        return f"{self.source}:{self.line}"


def load_documents(text: str, source: str = "<string>") -> list[Document]:
    """The objects in a YAML text. Empty documents are skipped; `kind: List` is opened.

    Args:
        text: one or more YAML documents.
        source: what messages call it, such as the file's name.

    Raises:
        SpecError: the text is not YAML, or an object in it cannot be accepted. Says file, line and path, and never
            shows a secret.
    """
    documents = [document for tree in parse_trees(text, source) for document in _objects(Place(tree))]
    _check_unique(documents)
    return documents


def load_files(paths: Sequence[str | PathLike[str]]) -> list[Document]:
    """The objects in several files, which may refer to one another.

    Args:
        paths: files; directories, of which every .yaml, .yml and .json file is read in order of name; `-` for
            standard input.

    Raises:
        SpecError: as `load_documents`; or nothing is in the files; or two of them hold the same object.
        NotFoundError: a file does not exist.
    """
    documents: list[Document] = []
    for path in paths:
        for text, source in _texts(path):
            documents += load_documents(text, source)
    if not documents:
        raise SpecError("no objects in the files given", where=", ".join(str(path) for path in paths))
    _check_unique(documents)
    return documents


def _texts(path: str | PathLike[str]) -> list[tuple[str, str]]:
    if str(path) == "-":
        return [(sys.stdin.read(), "<stdin>")]
    location = Path(path)
    if location.is_dir():
        return [(_read(file), str(file)) for file in sorted(location.iterdir()) if file.suffix in SUFFIXES]
    return [(_read(location), str(location))]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError("no such file", where=str(path)) from None
    except UnicodeDecodeError:
        pass
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", where=str(path)) from None
    raise SpecError("not a text file in UTF-8", where=str(path))


def _objects(place: Place) -> list[Document]:
    value = _at(place.tree, place)
    if not isinstance(value, dict):
        found = "a list" if isinstance(value, list) else "a single value"
        hint = "put '---' between documents, not '- '" if isinstance(value, list) else ""
        raise place.error(f"an object must be a mapping with apiVersion and kind; this is {found}", hint=hint)
    if value.get("kind") == "List" and value.get("apiVersion") == "v1":
        items = value.get("items") or []
        if not isinstance(items, list):
            raise place.error("must be a list", ("items",))
        inner = [replace(place, base=(*place.base, "items", index)) for index in range(len(items))]
        return [document for item in inner for document in _objects(item)]
    return [_document(value, place)]


def _at(tree: Tree, place: Place) -> Any:
    value = tree.value
    for step in place.base:
        value = value[step]
    return value


def _document(value: dict[str, Any], place: Place) -> Document:
    api_version, kind = _type_of(value, place)
    warnings: list[str] = []
    value = _without_last_applied(value, place, warnings)
    if api_version == fluid.API_VERSION:
        kind, value, moved = fluid.translate(kind, value, place, warnings)
        place = replace(place, moved=moved)
    elif api_version == "v1":
        value = fluid.from_kubernetes(value, place, warnings)
    model = validate(KINDS[kind], value, place)
    if isinstance(model, Secret):
        warnings += _secret_warnings(model, place)
    metadata = model.metadata
    return Document(kind, metadata.name, metadata.namespace, model, place.tree.source, place.line(), warnings)


def _type_of(value: dict[str, Any], place: Place) -> tuple[str, str]:
    """The object's apiVersion and kind, known to be a pair that is understood."""
    for key in ("apiVersion", "kind"):
        if value.get(key) is None:
            raise place.error("is required", (key,), _missing_type_hint(value, key))
        if not isinstance(value[key], str):
            raise place.error("must be a string", (key,), "put it in quotes")
    api_version, kind = value["apiVersion"], value["kind"]
    known = {API_VERSION: sorted(KINDS), "v1": ["List", "Secret"]}
    if api_version == fluid.API_VERSION:
        fluid.check_kind(kind, place)
        return api_version, kind
    if api_version not in known:
        raise place.error(
            f"unknown apiVersion {api_version[:80]!r}",
            ("apiVersion",),
            name_hint(api_version, [*known, fluid.API_VERSION]),
        )
    if kind not in known[api_version]:
        hint = name_hint(kind, known[api_version])
        if api_version == API_VERSION and fluid.is_runtime(kind):
            hint = f"Fluid's kinds have apiVersion {fluid.API_VERSION}"
        raise place.error(f"unknown kind {kind[:80]!r} of {api_version}", ("kind",), hint)
    return api_version, kind


def _missing_type_hint(value: dict[str, Any], key: str) -> str:
    misspelt = next((name for name in value if name.lower() == key.lower()), None)
    if misspelt is not None:
        return f"{misspelt!r} is spelt {key!r}"
    return f"write apiVersion: {API_VERSION}" if key == "apiVersion" else f"one of {', '.join(sorted(KINDS))}"


def _without_last_applied(value: dict[str, Any], place: Place, warnings: list[str]) -> dict[str, Any]:
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        return value
    annotations = metadata.get("annotations")
    if not (isinstance(annotations, dict) and _LAST_APPLIED in annotations):
        return value
    warnings.append(f"{place.where(('metadata', 'annotations', _LAST_APPLIED))}: left out")
    kept = {key: item for key, item in annotations.items() if key != _LAST_APPLIED}
    return {**value, "metadata": {**metadata, "annotations": kept}}


def _secret_warnings(secret: Secret, place: Place) -> list[str]:
    warnings = []
    for key, value in secret.values().items():
        if value.get_secret_value().endswith("\n"):
            part = "stringData" if key in secret.string_data else "data"
            where = place.where((part, key))
            warnings.append(
                f"{where}: the value ends with a line break, which credentials seldom do (echo -n, |-)"
            )
    return warnings


def _check_unique(documents: Sequence[Document]) -> None:
    seen: dict[tuple[str, str], Document] = {}
    for document in documents:
        first = seen.setdefault((document.kind, document.name), document)
        if first is not document:
            raise SpecError(
                f"{document.kind} {document.name!r} is already defined at {first.where}",
                where=document.where,
                hint="names are unique in the whole cluster, whatever the namespace",
            )
