"""YAML text as plain data, with the line of every field.

PyYAML composes the node tree; the conversion to Python values is ours, because the stock one forgets lines, lets
a duplicate key win in silence, and quotes the text around an error (which may hold a secret). Scalars resolve as in
YAML 1.1, which is what Kubernetes' own YAML reader does: `yes` is a boolean, `0444` is octal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from raycache.errors import SpecError

Path = tuple[str | int, ...]
"""Keys and list indices that lead to a value of a document."""

MAX_NODES = 100_000
"""Values one document may expand to. Far above any real spec; stops aliases that multiply without end."""

_TAG = "tag:yaml.org,2002:"
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass
class Tree:
    """One YAML document.

    Args:
        value: its content: None, bool, int, float, str, list, dict with string keys.
        source: file name, for messages.
        lines: line (from 1) of each key and each list item.
    """

    value: Any
    source: str
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """Line of a value, or of its nearest parent that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def where(self, path: Path) -> str:
        """`file.yaml:12: spec.mounts[0].mountPoint`."""
        place = f"{self.source}:{self.line(path)}"
        return f"{place}: {dotted(path)}" if path else place


def dotted(path: Path) -> str:
    """A path as people write it: `spec.mounts[0].options["fs.oss.endpoint"]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_NAME.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


def parse_trees(text: str, source: str) -> list[Tree]:
    """The documents of a YAML text, empty ones left out.

    Raises:
        SpecError: not YAML, or YAML that means nothing in a spec (custom tags, recursive aliases, keys that are not
            strings or come twice). The message never quotes a value.
    """
    failure: SpecError | None = None
    trees: list[Tree] = []
    try:
        for node in yaml.compose_all(text, Loader=yaml.SafeLoader):
            tree = _Converter(source).convert(node)
            if tree.value is not None:
                trees.append(tree)
    except yaml.YAMLError as error:
        failure = _syntax_error(error, text, source)
    except RecursionError:
        failure = SpecError("nested too deeply", where=source)
    # Raised out here so that it carries no __context__: the YAML error holds the text, secrets and all.
    if failure is not None:
        raise failure
    return trees


def _syntax_error(error: yaml.YAMLError, text: str, source: str) -> SpecError:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return SpecError(
            "not valid YAML: a character that may not appear in it",
            where=f"{source}:{line}",
            hint="is it a text file?",
        )
    if not isinstance(error, yaml.MarkedYAMLError):
        return SpecError("not valid YAML", where=source)
    mark = error.problem_mark or error.context_mark
    where = f"{source}:{mark.line + 1}" if mark else source
    # The parser quotes names it stumbled on (an alias, a tag); an unquoted password looks like one: `*secret`.
    problem = re.sub(r"""(['"])(?!<|\\t)[^'"]{2,}\1""", "…", error.problem or "")
    return SpecError(
        f"not valid YAML: {problem}" if problem else "not valid YAML", where=where, hint=_advice(error)
    )


def _advice(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if r"\t" in problem:
        return "indent with spaces; YAML allows no tabs there"
    if "alias" in problem or "tag" in problem:
        return "quote a string that begins with * & or !"
    if "cannot start any token" in problem:
        return "quote a string that begins with a special character"
    return ""


class _Converter:
    def __init__(self, source: str) -> None:
        self.tree = Tree(None, source)
        self.count = 0
        self.open: set[int] = set()  # nodes being converted; meeting one again is a recursive alias

    def convert(self, node: yaml.Node) -> Tree:
        self.tree.lines[()] = node.start_mark.line + 1
        self.tree.value = self.value(node, ())
        return self.tree

    def fail(self, what: str, node: yaml.Node, path: Path, hint: str = "") -> SpecError:
        place = f"{self.tree.source}:{node.start_mark.line + 1}"
        return SpecError(what, where=f"{place}: {dotted(path)}" if path else place, hint=hint)

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        if self.count > MAX_NODES:
            raise self.fail("the document expands to too many values", node, ())
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if id(node) in self.open:
            raise self.fail("an alias contains itself", node, path)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
                return [self.item(child, (*path, index)) for index, child in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
                return self.mapping(node, path)
        finally:
            self.open.discard(id(node))
        raise self.fail("a YAML tag that has no meaning in a spec", node, path, "remove the tag")

    def item(self, node: yaml.Node, path: Path) -> Any:
        self.tree.lines[path] = node.start_mark.line + 1
        return self.value(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        own: set[str] = set()
        entries = [(key, value) for key, value in node.value if key.tag != f"{_TAG}merge"]
        # Merged keys first, wherever `<<` stands: the mapping's own keys win over them.
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                for merged_key, merged in self.merged(value_node, path):
                    result.setdefault(merged_key, merged)
        for key_node, value_node in entries:
            key = self.key(key_node, path)
            child = (*path, key)
            if key in own:
                first = self.tree.lines[child]
                raise self.fail(
                    f"key given twice (first on line {first})", key_node, child, "keep one of them"
                )
            own.add(key)
            self.tree.lines[child] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, child)
        return result

    def merged(self, node: yaml.Node, path: Path) -> Iterator[tuple[str, Any]]:
        """Entries of a merge key (`<<: *base`, or a list of such; the first one to name a key wins)."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise self.fail("'<<' must merge a mapping", node, path)
            yield from self.value(source, path).items()

    def key(self, node: yaml.Node, path: Path) -> str:
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str":
            return str(node.value)
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail("a key must be a string", node, path, "is a {{template}} left in the file?")
        raise self.fail(
            "a key must be a string; unquoted, YAML reads this one as something else", node, path, "quote it"
        )

    def scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "timestamp", "value"):  # a date is a string in JSON, hence in Kubernetes
            return str(node.value)
        if kind not in ("null", "bool", "int", "float"):
            raise self.fail("a YAML tag that has no meaning in a spec", node, path, "remove the tag")
        try:
            return getattr(_SCALARS, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError):  # `!!int abc`, or more digits than Python converts
            pass
        raise self.fail(f"not a valid {_KINDS[kind]}", node, path, "quote it if it is meant as text")


_SCALARS: Any = yaml.constructor.SafeConstructor()
_KINDS = {"null": "null", "bool": "boolean", "int": "integer", "float": "number"}
