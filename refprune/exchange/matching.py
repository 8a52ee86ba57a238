"""Which layer of a file is which of a spec: by names, by the file's order, or by the tree of names and the shapes.

Names are a tree: "layer1.0.conv2" is conv2 in 0 in layer1. Where the order cannot be trusted, because a writer has sorted it,
the layers of the spec are dealt out along the tree: children that differ only by a number come in the order of the numbers,
other children in any order, and every layer must fit. If just one way of dealing is possible, that is it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError

#: Ways that are tried before the names are said to be ambiguous.
MOST_TRIES = 200_000

#: Orders that fit and are compared.
MOST_WAYS = 200

#: What frameworks and wrappers put before every name.
WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "backbone")

#: A layer's shapes, in a form that can be compared: what makes a layer of the file fit one of the spec.
Signature = Any


def unwrapped(names: Sequence[str]) -> tuple[list[str], str]:
    """The names without what wrappers put before all of them, and what that was."""
    names, gone = list(names), ""
    for _ in range(len(WRAPPERS)):
        first = {name.partition(".")[0] for name in names}
        if len(first) != 1 or not first <= set(WRAPPERS) or not all("." in name for name in names):
            break
        gone += f"{first.pop()}."
        names = [name.partition(".")[2] for name in names]
    return names, gone


def numbers(name: str) -> tuple[str, int]:
    """A name without its last number, and the number: "conv2" → ("conv", 2), "bn_10" → ("bn", 10), "dense" → ("dense", -1)."""
    found = re.fullmatch(r"(.*?)_?(\d+)", name)
    return (found[1], int(found[2])) if found else (name, -1)


def natural(name: str) -> list[tuple[str, int]]:
    """A key that sorts numbers as numbers."""
    return [numbers(part) for part in name.split(".")]


def sorted_as_text(names: Sequence[str]) -> bool:
    """Are the names in the order of their letters, where the order of their numbers is another?"""
    return list(names) == sorted(names) != sorted(names, key=natural)


@dataclass
class _Node:
    """A part of a name. module: the layer of the file that ends here, if one does."""

    children: dict[str, _Node] = field(default_factory=dict)
    module: str | None = None


def by_tree(modules: Mapping[str, Signature], wanted: Sequence[Signature], blocks: Sequence[str]) -> list[str]:
    """The modules, by name, in the order of `wanted`. DataError if none, or more than one, order fits.

    blocks: for each of `wanted` the block of the spec that it belongs to. Of several orders that fit, one is taken if it alone
        leaves every block of names within one block of the spec.
    """
    root = _Node()
    for name in modules:
        node = root
        for part in name.split("."):
            node = node.children.setdefault(part, _Node())
        node.module = name
    search = _Search(modules, wanted)
    found: list[list[str]] = []
    for names in search.ways(root, 0):
        if len(names) == len(wanted):
            found.append(list(names))
        if len(found) >= MOST_WAYS:
            break
    whole = [names for names in found if _keeps_blocks(names, blocks)]
    if len(found) == 1 or (len(whole) == 1 and len(found) < MOST_WAYS):
        return whole[0] if len(whole) == 1 else found[0]
    found = whole or found
    if not found:
        raise DataError("its layers do not fit the spec in any order of their names")
    first = next(i for i, (a, b) in enumerate(zip(*found[:2], strict=True)) if a != b)
    raise DataError(f"its names do not tell whether {found[0][first]} or {found[1][first]} comes first")


def _keeps_blocks(names: Sequence[str], blocks: Sequence[str]) -> bool:
    """Do names with the same parent, other than the root, stand for layers of one block?"""
    seen: dict[str, str] = {}
    for name, block in zip(names, blocks, strict=True):
        parent = name.rpartition(".")[0]
        if parent and seen.setdefault(parent, block) != block:
            return False
    return True


class _Search:
    """Deals the wanted layers out along a tree of names."""

    def __init__(self, modules: Mapping[str, Signature], wanted: Sequence[Signature]) -> None:
        self.modules, self.wanted, self.tries = modules, wanted, 0

    def ways(self, node: _Node, at: int) -> Iterator[tuple[str, ...]]:
        """The orders in which the modules of a node can be the next wanted layers from `at` on."""
        if node.module is not None and not node.children:
            if at < len(self.wanted) and self.modules[node.module] == self.wanted[at]:
                yield (node.module,)
            return
        yield from self._rest(node, frozenset(node.children), at)

    def _rest(self, node: _Node, left: frozenset[str], at: int) -> Iterator[tuple[str, ...]]:
        self.tries += 1
        if self.tries > MOST_TRIES:
            raise DataError("its names leave too many orders open")
        if not left:
            yield ()
            return
        for name in sorted(left, key=natural):
            if any(self._before(node, other, name) for other in left if other != name):
                continue
            for first in self.ways(node.children[name], at):
                for others in self._rest(node, left - {name}, at + len(first)):
                    yield (*first, *others)

    def _before(self, node: _Node, one: str, other: str) -> bool:
        """Must `one` come before `other`? Bare numbers in their order; else both blocks, or both layers of the same shapes."""
        (family, number), (others, second) = numbers(one), numbers(other)
        if family != others or number >= second:
            return False
        if not family:
            return True
        a, b = node.children[one].module, node.children[other].module
        return (a is None and b is None) or (a is not None and b is not None and self.modules[a] == self.modules[b])
