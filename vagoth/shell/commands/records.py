"""Commands that change what the registry says of nodes: new, set, delete, rename, edit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from vagoth.definition import assigned, read_text
from vagoth.errors import InvalidInput
from vagoth.shell.commands.acting import act, outcome, plans, targets
from vagoth.shell.context import Result, ShellContext
from vagoth.shell.grammar import (
    Assignments,
    KeyArg,
    LinkArg,
    Names,
    NewName,
    Required,
    StateName,
    TagArg,
    TenantName,
    TypeName,
    command,
)

Tags = Annotated[tuple[str, ...], TagArg()]
Keys = Annotated[tuple[str, ...], KeyArg()]
Links = Annotated[tuple[str, ...], LinkArg()]
Tenant = Annotated[str | None, TenantName()]
State = Annotated[str | None, StateName()]


@command("new")
async def new(
    ctx: ShellContext,
    name: Annotated[str, NewName()],
    *fields: Annotated[str, Assignments()],
    type: Annotated[str, TypeName()] = "vm",
    tenant: Tenant = None,
    tag: Tags = (),
    key: Keys = (),
    link: Links = (),
    state: State = None,
) -> Result:
    """Add a node to the registry. No host is contacted.

    For example: new web1 memory=512MiB vcpus=2 'nics=[{"network": "lan"}]' --tag env=prod

    :param name: what it is called
    :param fields: what it should be, field by field of its definition
    :param type: what it is: vm, hv (a host), volume, service, or a type of your own
    :param tenant: whose it is
    :param tag: a label for it
    :param key: a further unique name, such as asset:4711
    :param link: a relation to another node
    :param state: for types that no driver keeps the state of
    """
    given: dict[str, Any] = {
        "type": type,
        "definition": _definition(ctx, type, {}, fields),
        "tenant": tenant or None,
        "tags": _new_tags(tag),
        "keys": _keys(key, "--key"),
        "links": {name: found for name, found in _links(ctx, link).items() if found},
        "state": state,
    }
    if ctx.options.dry_run:
        return plans(ctx, [(name, lambda: ctx.cluster.plan_new(name, **given))])
    job = ctx.cluster.run(ctx.cluster.prepared(name, **given), name)
    return await outcome(ctx, [job])


@command("set")
async def set_node(
    ctx: ShellContext,
    name: Annotated[str, Names()],
    *fields: Annotated[str, Assignments(of="name")],
    name_: Annotated[str | None, NewName()] = None,
    tenant: Tenant = None,
    tag: Tags = (),
    key: Keys = (),
    no_key: Annotated[tuple[str, ...], KeyArg(of="name")] = (),
    link: Links = (),
    state: State = None,
) -> Result:
    """Change a node, in one commit; what is left out stays.

    For example: set web1 memory=1GiB boot= --tag env=prod --tag old= --key asset:4711

    :param name: the node
    :param fields: fields of its definition; FIELD= removes one
    :param name_: a new name
    :param tenant: whose it is; '' for nobody's
    :param tag: a label; KEY= removes one
    :param key: a further unique name
    :param no_key: a key to give up
    :param link: a relation to another node; LINK= removes all of that name
    :param state: for types that no driver keeps the state of
    """
    node = ctx.cluster[name]
    changes: dict[str, Any] = {
        "name": name_,
        "tenant": tenant,
        "tags": _tags(tag),
        "add_keys": _keys(key, "--key"),
        "remove_keys": _keys(no_key, "--no-key"),
        "links": _links(ctx, link),
        "state": state,
    }
    changes = {field: value for field, value in changes.items() if value not in (None, {}, ())}
    if fields:
        before = node.record.definition
        after = _definition(ctx, node.type, before, fields)
        changes["definition"] = difference(before, after)
    if not changes:
        raise InvalidInput(
            "set", name, "", message=f"set {name}: nothing to change was given", cure="help set"
        )
    return await act(ctx, [node], "set", waits=False, **changes)


@command("rename")
async def rename(
    ctx: ShellContext, old: Annotated[str, Names()], new: Annotated[str, NewName()]
) -> Result:
    """Give a node another name. What refers to it goes on doing so.

    :param old: the node
    :param new: its new name
    """
    return await act(ctx, [ctx.cluster[old]], "set", waits=False, name=new)


@command("delete")
async def delete(ctx: ShellContext, *names: Annotated[str, Names(globs=True), Required]) -> Result:
    """Remove nodes from the registry, with the links that others have to them.

    A machine must be off its host first (undefine), a host must carry none.

    :param names: the nodes: names, ids, keys, or patterns such as 'web*'
    """
    return await act(ctx, targets(ctx, names, "delete"), "delete")


_EDIT_HEAD = """\
# The definition of {name} ({type}), as JSON. Save it to apply your changes, in one commit.
# Left as it is, nothing happens. Lines that begin with # are ignored.
"""


@command("edit")
async def edit(ctx: ShellContext, name: Annotated[str, Names()]) -> Result:
    """Change a node's definition in your editor ($VISUAL, else $EDITOR, else vi).

    What is refused can be edited again, or left.

    :param name: the node
    """
    node = ctx.cluster[name]
    before = node.record.definition
    text = _EDIT_HEAD.format(name=node.name, type=node.type) + json.dumps(before, indent=2) + "\n"
    while True:
        text = await ctx.surroundings.edit(text, suffix=".json")
        try:
            patch = difference(before, _read_edited(text))
            if not patch:
                return Result(text=f"{node.name} is unchanged")
            node.plan("set", definition=patch)
        except InvalidInput as error:
            if await ctx.surroundings.confirm(f"{error}\nedit again?"):
                continue
            raise
        return await act(ctx, [node], "set", waits=False, definition=patch)


def _read_edited(text: str) -> Mapping[str, Any]:
    kept = "\n".join("" if line.startswith("#") else line for line in text.splitlines())
    try:
        value = json.loads(kept, parse_constant=_no_number)
    except ValueError as error:
        raise InvalidInput("definition", None, "", message=f"this is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput("definition", value, "an object: {…}")
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


# --- reading what was typed ---------------------------------------------------------------


def _definition(
    ctx: ShellContext, type_name: str, before: Mapping[str, Any], fields: Sequence[str]
) -> dict[str, Any]:
    """``before`` with ``field=value`` words laid over it, each read as its field's type says."""
    cls = ctx.cluster.types.get(type_name, field="--type")
    pairs = [_pair(word) for word in fields]
    # A field may decide which others there are (a host's driver does): first all as text.
    draft: Mapping[str, Any] = before
    for path, text in pairs:
        draft = assigned(draft, path, text or None)
    wanted = cls.definition_type(draft, ctx.cluster)
    after: Mapping[str, Any] = before
    for path, text in pairs:
        after = assigned(after, path, read_text(wanted, path, text) if text else None)
    return dict(after)


def _pair(word: str) -> tuple[str, str]:
    path, equals, text = word.partition("=")
    if not path or not equals:
        raise InvalidInput(
            "field", word, "FIELD=VALUE, such as memory=512MiB or boot.kernel=/vmlinuz"
        )
    return path, text


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7396) that makes ``after`` of ``before``."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = difference(old, value)
            if inner:
                patch[key] = inner
        elif key not in before or old != value or type(old) is not type(value):
            patch[key] = value
    return patch


def _tags(words: Sequence[str]) -> dict[str, str | None]:
    tags: dict[str, str | None] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise InvalidInput("--tag", word, "KEY, KEY=VALUE, or KEY= to remove it")
        tags[name] = (value or None) if equals else ""
    return tags


def _new_tags(words: Sequence[str]) -> dict[str, str]:
    tags = {}
    for name, value in _tags(words).items():
        if value is None:
            raise InvalidInput(
                "--tag", f"{name}=", "KEY or KEY=VALUE: a new node has none to remove"
            )
        tags[name] = value
    return tags


def _keys(words: Sequence[str], option: str) -> tuple[str, ...]:
    from vagoth.model import check_key

    return tuple(check_key(word, field=option) for word in words)


def _links(ctx: ShellContext, words: Sequence[str]) -> dict[str, list[str] | None]:
    links: dict[str, list[str] | None] = {}
    for word in words:
        name, equals, target = word.partition("=")
        if not name or not equals:
            raise InvalidInput("--link", word, "LINK=NODE, or LINK= to remove it")
        if not target:
            links[name] = None
            continue
        links[name] = [*(links.get(name) or ()), ctx.cluster.view.find(target).id]
    return links
