"""Reading pages in tests: strict about markup, so that nothing broken passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "link", "input", "br", "hr", "img"}


@dataclass
class Node:
    """An element with its attributes, text and children."""

    tag: str
    attributes: dict[str, str]
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def all(self, tag: str, kind: str | None = None) -> list[Node]:
        """Elements below with this tag and class, in order."""
        found = []
        for child in self.children:
            if child.tag == tag and (kind is None or kind in child.attributes.get("class", "").split()):
                found.append(child)
            found += child.all(tag, kind)
        return found

    def one(self, tag: str, kind: str | None = None) -> Node:
        found = self.all(tag, kind)
        assert len(found) == 1, f"{len(found)} <{tag} class={kind}>"
        return found[0]

    @property
    def text(self) -> str:
        """All text below, with single spaces."""
        return " ".join(" ".join(self._walk()).split())

    def _walk(self) -> list[str]:
        # texts and children in any order are enough for what tests look for
        return [*self.texts, *(part for child in self.children for part in child._walk())]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {})
        self.here = self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        node = Node(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.children.append(node)
        if tag not in _VOID:
            self.here = node

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.here.tag == tag, f"</{tag}> closes <{self.here.tag}> near {self.getpos()}"
        assert self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        if self.here.tag not in ("script", "style"):
            self.here.texts.append(data)


def read(text: str) -> Node:
    """The page as a tree; unbalanced tags, double attributes and double ids fail."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.here is reader.root, f"<{reader.here.tag}> is not closed"
    ids = _ids(reader.root)
    assert len(ids) == len(set(ids)), ids
    return reader.root


def _ids(node: Node) -> list[str]:
    own = [node.attributes["id"]] if "id" in node.attributes else []
    return own + [i for child in node.children for i in _ids(child)]
