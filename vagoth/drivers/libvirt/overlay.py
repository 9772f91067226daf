"""A fragment of domain XML, laid over the XML that was generated. Pure.

The rule: the fragment's root is ``<domain>``. An element of it is merged into the element of the
same name that stands in the same place; a second one of that name into the second there; where
there is none, it is added. Merged means: its attributes overwrite, its text replaces, and its
children are treated likewise. With the attribute ``overlay="replace"`` (in the namespace
``urn:vagoth:node:1``) an element takes the place of what it would be merged into instead.

The children of ``<devices>`` are added, since a guest may have many of each; but ``emulator`` and
``memballoon``, of which it has one, are merged.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vagoth.errors import InvalidInput

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

REPLACE = "{urn:vagoth:node:1}overlay"
_SINGLE_DEVICES = ("emulator", "memballoon")
# A guest is found by them; and what it is called, its node says.
_KEPT = ("name", "uuid")


def read_fragment(text: str) -> Element:
    """The user's fragment, parsed: no DTD, no entities, nothing fetched.

    :raises InvalidInput: it is malformed, or is not a ``<domain>`` that may be laid over
    """
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        remove_comments=True,
        remove_pis=True,
        remove_blank_text=True,
    )
    try:
        root = etree.fromstring(text.encode(), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise InvalidInput("xml", text, f"well-formed XML: {error}") from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise InvalidInput("xml", text, "XML without a document type")
    if root.tag != "domain":
        raise InvalidInput("xml", text, "a fragment whose root is <domain>")
    for tag in _KEPT:
        if root.find(tag) is not None:
            raise InvalidInput("xml", text, f"a fragment without <{tag}>, which its node says")
    return root


def lay_over(domain: Element, fragment: Element) -> None:
    """Merge a fragment into a domain, by the rule of this module."""
    domain.attrib.update(fragment.attrib)
    if (fragment.text or "").strip():
        domain.text = fragment.text
    is_devices = domain.tag == "devices"
    seen: Counter[object] = Counter()
    for child in list(fragment):
        there = domain.findall(child.tag)
        index, seen[child.tag] = seen[child.tag], seen[child.tag] + 1
        replaces = child.attrib.pop(REPLACE, "") == "replace"
        if index >= len(there) or (is_devices and child.tag not in _SINGLE_DEVICES):
            domain.append(child)
        elif replaces:
            domain.replace(there[index], child)
        else:
            lay_over(there[index], child)
