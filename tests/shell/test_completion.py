"""What is suggested at the cursor, case by case: text and view in, suggestions out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from vagoth.definition import VMDefinition
from vagoth.drivers.sim import SimHostDefinition
from vagoth.errors import InvalidInput
from vagoth.model import Record
from vagoth.shell.completer import LineCompleter
from vagoth.shell.completion import LIMIT, Kind, World, complete
from vagoth.view import View


def definition_type(name: str, draft: Mapping[str, Any]) -> Any:
    """As node types say it: what a host's definition holds depends on its driver."""
    if name == "vm":
        return VMDefinition
    if name == "hv":
        if draft.get("driver") != "sim":
            raise InvalidInput("driver", draft.get("driver"), "one of sim")
        return SimHostDefinition
    return None


def record(name: str, **fields: Any) -> Record:
    return Record(id=f"id-{name}", name=name, revision="1", **fields)


def world(*more: Record, in_shell: bool = True) -> World:
    view = View()
    view.load(
        [
            record("hv1", type="hv", state="up", definition={"driver": "sim", "cpus": 4}),
            record("hv2", type="hv", state="unreachable", definition={"driver": "sim"}),
            record(
                "web1",
                state="running",
                parent="id-hv1",
                tags={"env": "prod", "keep": ""},
                tenant="acme",
                keys=("asset:1", "uuid:11"),
                definition={"memory": 128, "nics": [{"network": "lan"}]},
            ),
            record("web2", state="stopped", tags={"env": "test"}, tenant="umbrella"),
            record("web10", state="new"),
            record("db", state="running", links={"uses": ("id-web1",)}),
            *more,
        ]
    )
    return World(
        view,
        types=["hv", "service", "vm"],
        drivers=["libvirt", "sim"],
        definition_type=definition_type,
        in_shell=in_shell,
    )


VMS = ["db", "web1", "web2", "web10"]

CASES = [
    # commands
    ("st", ["start", "stop", "store"]),
    ("  star", ["start"]),
    ("art", []),
    ("exi", ["exit"]),
    ("monit", []),
    ("xyzzy ", []),
    # names of nodes, by the type that the argument wants
    ("start ", VMS),
    ("start w", ["web1", "web2", "web10"]),
    ("start WEB1", ["web1", "web10"]),
    ("start eb2", ["web2"]),
    ("start web1 ", ["db", "web2", "web10"]),
    ("start 'we", ["web1", "web2", "web10"]),
    ("info h", ["hv1", "hv2"]),
    ("info web1 ", []),
    ("poll ", ["hv1", "hv2"]),
    ("poll hv1 ", ["hv2"]),
    ("migrate ", VMS),
    ("migrate web1 ", ["hv1", "hv2"]),
    ("migrate web1 hv2 ", []),
    ("new ", []),
    ("rename web1 ", []),
    # options, and what they want
    ("start web1 --", ["--on", "--wait", "--json", "--dry-run", "--debug", "--help"]),
    ("start --on ", ["hv1", "hv2"]),
    ("start --on=", ["hv1", "hv2"]),
    ("start --on=hv2", ["hv2"]),
    ("start web1 --on hv1 --o", []),
    ("start --on hv1 w", ["web1", "web2", "web10"]),
    ("--jso", ["--json"]),
    ("--store ", []),
    ("list --ty", ["--type"]),
    ("list --type ", ["hv", "service", "vm"]),
    ("list --type h", ["hv"]),
    ("list --state un", ["unknown", "unreachable", "unseen", "running"]),
    ("list --tenant ", ["acme", "umbrella"]),
    ("list --tag ", ["env=prod", "env=test", "keep"]),
    ("list --tag env=t", ["env=test"]),
    ("list --tag a --tag k", ["keep"]),
    ("list --key as", ["asset:1"]),
    ("list --parent h", ["hv1", "hv2"]),
    ("set web1 --no-key ", ["asset:1", "uuid:11"]),
    ("set web1 --li", ["--link"]),
    ("set web1 --link ", ["uses="]),
    ("set web1 --link uses=d", ["uses=db"]),
    ("start -- --", []),
    # fields of definitions, and their values
    ("new web3 me", ["memory="]),
    ("new web3 memory=1 ki", ["kind="]),
    ("new web3 kind=", ["kind=kvm", "kind=qemu", "kind=lxc"]),
    ("new web3 kind=q", ["kind=qemu"]),
    ("new web3 bo", ["boot=", "boot."]),
    ("new web3 boot.", ["boot.kernel=", "boot.initrd=", "boot.cmdline="]),
    ("new web3 boot=", ["boot=disk", "boot=network"]),
    ("new web3 nics", ["nics[0]."]),
    ("new web3 nics[0].m", ["nics[0].mac=", "nics[0].model="]),
    ("new web3 disks[0].readonly=", ["disks[0].readonly=true", "disks[0].readonly=false"]),
    ("new web3 a..b", []),
    ("set web1 nics[", ["nics[0].", "nics[1]."]),
    ("set web1 memory=", ["memory=128"]),
    ("set db memory=", []),
    ("set hv1 cp", ["cpus="]),
    ("set hv1 cpus=", ["cpus=4"]),
    ("new hv3 --type hv d", ["driver="]),
    ("new hv3 --type hv driver=", ["driver=libvirt", "driver=sim"]),
    ("new hv3 --type hv driver=sim boot", ["boot_s="]),
    ("new hv3 driver=sim --type hv lat", ["latency_s="]),
    ("new s --type service me", []),
    # commands again
    ("help re", ["reboot", "rename", "resume"]),
]


@pytest.mark.parametrize(("text", "wanted"), CASES, ids=[text for text, _ in CASES])
def test_what_is_suggested(text: str, wanted: list[str]) -> None:
    assert [suggestion.text for suggestion in complete(text, world())] == wanted


def test_outside_the_shell_other_commands_and_options_make_sense() -> None:
    outside = world(in_shell=False)
    assert [suggestion.text for suggestion in complete("mo", outside)] == ["monitor"]
    assert not complete("exi", outside)
    assert [suggestion.text for suggestion in complete("--s", outside)][:2] == ["--store", "--sim"]


def test_each_suggestion_says_what_it_is() -> None:
    [web1] = complete("start web1", world(record("other")))[:1]
    assert (web1.kind, web1.about) == (Kind.NODE, "vm running on hv1")
    [start] = complete("star", world())
    assert start.kind is Kind.COMMAND
    assert start.about.startswith("Start virtual machines")
    [prod, _, keep] = complete("list --tag ", world())
    assert (prod.about, keep.kind) == ("1 node", Kind.TAG)
    [now] = complete("set web1 memory=", world())
    assert (now.kind, now.about) == (Kind.VALUE, "now")


@pytest.mark.parametrize(
    ("text", "start"),
    [("st", 0), ("start we", 6), ("start --on=hv", 11), ("  sta", 2), ("new web3 ki", 9)],
)
def test_a_suggestion_replaces_the_word_that_was_begun(text: str, start: int) -> None:
    assert {suggestion.start for suggestion in complete(text, world())} == {start}


def test_what_begins_so_comes_before_what_holds_it() -> None:
    found = complete("start a", world(record("alpha"), record("data"), record("beta2")))
    assert [suggestion.text for suggestion in found] == ["alpha", "beta2", "data"]


def test_of_very_many_the_first_are_suggested_in_order() -> None:
    many = [record(f"vm{number}") for number in range(3000)]
    found = [suggestion.text for suggestion in complete("start vm", world(*many))]
    assert len(found) == LIMIT
    assert found[:3] == ["vm0", "vm1", "vm2"]


def test_no_text_makes_completion_fail() -> None:
    """Whatever stands before the cursor: half a line is always allowed."""
    line = "new 'web 3' memory=128 nics[0].mac=52: --tag=a -- \"x --on= \\"
    here = world()
    for end in range(len(line) + 1):
        complete(line[:end], here)


def test_at_the_prompt_names_are_quoted_as_they_must_be_typed() -> None:
    completer = LineCompleter(world(record("it's")))
    document = Document("info it")
    [first, *_] = completer.get_completions(document, CompleteEvent())
    assert first.text == "'it'\"'\"'s'"
    assert first.start_position == -2
    assert first.display_text == "it's"
