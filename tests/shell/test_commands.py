"""Every command over simulated hosts, inside this process: what it finds, does and refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import vagoth
from tests.shell.conftest import Say
from vagoth.actions.base import this_process
from vagoth.drivers.sim import SimHost
from vagoth.errors import (
    Conflict,
    HostError,
    InUse,
    InvalidInput,
    NodeNotFound,
    OutcomeUnknown,
    ShutdownTimeout,
    Taken,
    VagothError,
)
from vagoth.model import Intent
from vagoth.render import as_data
from vagoth.scheduler import Job
from vagoth.shell.context import Interrupted, Result, Surroundings
from vagoth.shell.line import quoted

INFO = {
    "id",
    "name",
    "type",
    "tenant",
    "state",
    "alarm",
    "intent",
    "parent",
    "tags",
    "keys",
    "definition",
    "metadata",
    "links",
}


def rows(result: Result) -> list[dict[str, Any]]:
    """A result's table, row by row, by its columns' keys."""
    assert result.table is not None
    keys = [column.key for column in result.table.columns]
    return [dict(zip(keys, row, strict=True)) for row in result.table.rows]


def names(result: Result) -> list[str]:
    return [row["name"] for row in rows(result)]


async def furnish(say: Say) -> None:
    """web1 runs on hv1, web2 is defined on hv2, db1 has no host."""
    await say("new web1 memory=128 vcpus=2 --tag env=prod --tag keep --key asset:1 --tenant acme")
    await say("new web2 memory=256 --tag env=test")
    await say("new db1 memory=1GiB")
    await say("start web1 --on hv1")
    await say("define web2 --on hv2")


# --- looking ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("list", ["db1", "hv1", "hv2", "hv3", "web1", "web2"]),
        ("list web*", ["web1", "web2"]),
        ("list web1", ["web1"]),
        ("list asset:1", ["web1"]),
        ("list nothing*", []),
        ("list --type hv", ["hv1", "hv2", "hv3"]),
        ("list --type volume", []),
        ("list --state running", ["web1"]),
        ("list --tenant acme", ["web1"]),
        ("list --tag env", ["web1", "web2"]),
        ("list --tag env=prod --tag keep", ["web1"]),
        ("list --tag env=prod --tag env=test", ["web2"]),
        ("list --parent hv1", ["web1"]),
        ("list --key asset:1", ["web1"]),
        ("list --key asset:9", []),
        ("list web* --state defined", ["web2"]),
    ],
)
async def test_list_gives_the_nodes_that_meet_every_condition(
    line: str, found: list[str], say: Say
) -> None:
    await furnish(say)
    assert names(await say(line)) == found


async def test_info_gives_everything_as_data(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    result = await say("info asset:1")
    data = as_data(result.table)
    assert data.keys() == INFO
    assert (data["name"], data["parent"], data["state"]) == ("web1", "hv1", "running")
    assert data["definition"] == {"memory": 128, "vcpus": 2}
    told = {row["field"]: row["value"] for row in rows(result)}
    assert told["memory"] == 128
    assert told["tenant"] == "acme"
    assert as_data((await say("info db1")).table)["parent"] is None


async def test_tree_shows_hosts_with_their_machines_and_then_the_others(say: Say) -> None:
    await furnish(say)
    result = await say("tree")
    assert names(result) == ["hv1", "└─ web1", "hv2", "└─ web2", "hv3", "(no host)", "└─ db1"]
    hosts = as_data(result.table)
    assert [host["name"] for host in hosts] == ["hv1", "hv2", "hv3", "db1"]
    assert [child["name"] for child in hosts[0]["children"]] == ["web1"]


async def test_looking_writes_nothing(say: Say, store: Path) -> None:
    await furnish(say)
    before = store.read_bytes()
    for line in ("list", "tree", "info web1", "jobs", "help", "help set", "check hv1"):
        await say(line)
    for line in ("start db1 --dry-run", "delete db1 --dry-run", "new x memory=1 --dry-run"):
        await say(line)
    assert store.read_bytes() == before


# --- records ------------------------------------------------------------------------------


async def test_new_reads_each_value_as_its_field_says(say: Say, cluster: vagoth.Cluster) -> None:
    await say(
        "new web1 memory=128 kind=qemu boot.kernel=/vmlinuz boot.initrd=/initrd"
        ' \'nics=[{"network": "lan"}]\' \'xml=<a b="1"/>\''
    )
    definition = cluster["web1"].definition
    assert definition["memory"] == "128" or definition["memory"] == 128
    assert definition["boot"] == {"kernel": "/vmlinuz", "initrd": "/initrd"}
    assert definition["nics"][0]["network"] == "lan"
    assert definition["xml"] == '<a b="1"/>'
    await say("new rack1 --type service version=1.10 serial=007 load=0.5 --state fine")
    assert cluster["rack1"].state == "fine"


async def test_a_host_is_added_with_the_fields_of_its_driver(
    say: Say, cluster: vagoth.Cluster
) -> None:
    await say("new hv9 --type hv cpus=4 driver=sim memory=2GiB deaf=true")
    assert dict(cluster["hv9"].definition) == {
        "cpus": 4,
        "driver": "sim",
        "memory": "2GiB",
        "deaf": True,
    }


async def test_set_changes_what_is_named_and_nothing_else(
    say: Say, cluster: vagoth.Cluster
) -> None:
    await furnish(say)
    await say(
        "set db1 --name sql1 --tenant umbrella --tag env=prod --key asset:2"
        " --link uses=web1 --link uses=web2 memory=2GiB boot.kernel=/k"
    )
    node = cluster["sql1"]
    assert node.tenant == "umbrella"
    assert node.tags == {"env": "prod"}
    assert "asset:2" in node.keys
    assert [target.name for target in node.links["uses"]] == ["web1", "web2"]
    assert dict(node.definition) == {"memory": "2GiB", "boot": {"kernel": "/k"}}
    await say("set sql1 --tenant '' --tag env= --no-key asset:2 --link uses= boot=")
    assert node.record.tenant is None
    assert not node.record.tags
    assert not node.record.links
    assert "asset:2" not in node.keys
    assert dict(node.definition) == {"memory": "2GiB"}


async def test_rename_frees_the_old_name(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    await say("rename web1 www1")
    assert cluster["www1"].state == "running"
    await say("new web1 memory=64")


async def test_delete_removes_many_at_once(say: Say, cluster: vagoth.Cluster) -> None:
    for number in range(3):
        await say(f"new tmp{number} memory=64")
    result = await say("delete tmp*")
    assert [row["outcome"] for row in rows(result)] == ["done"] * 3
    assert len(cluster.nodes("tmp*")) == 0


class Editor(Surroundings):
    """Somebody at a terminal who answers as told."""

    is_interactive = True

    def __init__(self, *texts: str, again: bool = False) -> None:
        self.texts = list(texts)
        self.again = again
        self.shown: list[str] = []

    async def edit(self, text: str, *, suffix: str) -> str:
        self.shown.append(text)
        wanted = self.texts.pop(0)
        return wanted or text

    async def confirm(self, question: str) -> bool:
        return self.again


async def test_edit_applies_what_was_saved(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    editor = Editor('# a comment\n{"memory": "2GiB", "boot": "network"}\n')
    await say("edit web1", editor)
    assert dict(cluster["web1"].definition) == {"memory": "2GiB", "boot": "network"}
    assert '"vcpus": 2' in editor.shown[0]


async def test_edit_left_as_it_is_writes_nothing(say: Say, store: Path) -> None:
    await furnish(say)
    before = store.read_bytes()
    result = await say("edit web1", Editor(""))
    assert result.text == "web1 is unchanged"
    assert store.read_bytes() == before


@pytest.mark.parametrize("text", ['{"memroy": 1}', "{", "[]", '{"memory": NaN}'])
async def test_edit_of_nonsense_may_be_tried_again_or_left(
    text: str, say: Say, cluster: vagoth.Cluster
) -> None:
    await furnish(say)
    before = cluster["web1"].record
    with pytest.raises(InvalidInput):
        await say("edit web1", Editor(text))
    assert cluster["web1"].record == before
    await say("edit web1", Editor(text, '{"memory": 64}', again=True))
    assert cluster["web1"].definition["memory"] == 64


async def test_edit_without_a_terminal_says_what_to_use(say: Say) -> None:
    await furnish(say)
    with pytest.raises(InvalidInput, match="edit needs a terminal"):
        await say("edit web1")


# --- verbs --------------------------------------------------------------------------------


async def test_a_machine_lives_its_life(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    node = cluster["web1"]
    for line, state, parent in [
        ("pause web1", "paused", "hv1"),
        ("resume web1", "running", "hv1"),
        ("reboot web1", "running", "hv1"),
        ("migrate web1 hv3", "running", "hv3"),
        ("start web1", "running", "hv3"),
        ("shutdown web1", "stopped", "hv3"),
        ("start web1", "running", "hv3"),
        ("stop web1", "stopped", "hv3"),
        ("undefine web1", "new", None),
        ("define web1 --on hv2", "defined", "hv2"),
    ]:
        result = await say(line)
        assert result.code == 0, line
        assert (node.state, node.parent.name if node.parent else None) == (state, parent), line


async def test_a_pattern_means_the_machines_that_can(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    assert names(await say("start *")) == ["db1", "web1", "web2"]
    assert [row["outcome"] for row in rows(await say("stop web1 w*"))] == ["done", "done"]


async def test_every_name_is_resolved_before_anything_is_done(
    say: Say, cluster: vagoth.Cluster
) -> None:
    await furnish(say)
    with pytest.raises(NodeNotFound, match="did you mean web2"):
        await say("stop web1 wbe2")
    with pytest.raises(InvalidInput, match="hv1 is a hv, which cannot stop"):
        await say("stop web1 hv1")
    with pytest.raises(NodeNotFound):
        await say("stop web1 nothing*")
    assert cluster["web1"].state == "running"


async def test_partial_failure_is_plain_and_decides_the_code(
    say: Say, cluster: vagoth.Cluster
) -> None:
    await furnish(say)
    result = await say("delete web1 web2 db1")
    assert [row["outcome"] for row in rows(result)] == ["failed", "failed", "done"]
    assert [failure.about for failure in result.failures] == ["web1", "web2"]
    assert result.code == InUse.exit_code
    assert "db1" not in cluster


async def test_different_failures_have_no_common_code(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    await cluster["hv1"].set(definition={"deaf": True})
    await cluster["hv2"].set(definition={"down": "refuse"})
    result = await say("shutdown web1 web2 --grace 0.1")
    codes = {type(failure.error).exit_code for failure in result.failures}
    assert result.code == (codes.pop() if len(codes) == 1 else 1)


async def test_a_shutdown_has_as_long_as_it_is_given(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    await cluster["hv1"].set(definition={"deaf": True})
    with pytest.raises(ShutdownTimeout, match=r"0\.1 s"):
        await say("shutdown web1 --grace 0.1")
    assert cluster["web1"].state == "running"


class Watched(Surroundings):
    """Somebody who looks at the progress of jobs."""

    def __init__(self) -> None:
        self.jobs: Sequence[Job] = ()

    def progress(self, jobs: Sequence[Job]) -> AbstractContextManager[Any]:
        self.jobs = jobs
        return nullcontext()

    async def waits(self, step: str) -> None:
        """Return when a job is at that step."""
        async with asyncio.timeout(10):
            while not any(job.step.startswith(step) for job in self.jobs):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_interrupted_it_says_what_is_known(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    await cluster["hv1"].set(definition={"deaf": True})
    begun = Watched()
    task = asyncio.create_task(say("shutdown web1", begun))
    await begun.waits("waiting")
    task.cancel()
    with pytest.raises(Interrupted) as caught:
        await task
    assert caught.value.result.code == 130
    [row] = rows(caught.value.result)
    assert (row["outcome"], row["state"]) == ("cancelled", "running")
    assert cluster["web1"].intent is None


@pytest.mark.parametrize(
    "line",
    [
        "start db1",
        "start web1 db1 --on hv3",
        "stop web1",
        "migrate web1 hv2",
        "undefine web2",
        "define db1",
        "delete db1",
        "rename db1 sql1",
        "set db1 --tag a=b memory=1GiB",
        "new x memory=1 --key a:b",
        "pause web1",
        "shutdown web1",
        "reboot web1",
    ],
)
async def test_dry_run_shows_a_plan_and_changes_nothing(
    line: str, say: Say, store: Path, cluster: vagoth.Cluster
) -> None:
    await furnish(say)
    before = store.read_bytes()
    jobs = len(cluster.scheduler.jobs())
    result = await say(f"{line} --dry-run")
    assert rows(result) or result.failures
    for plan in as_data(result.table):
        assert set(plan) == {"action", "node", "steps", "hosts", "changes", "notes"}
    assert store.read_bytes() == before
    assert len(cluster.scheduler.jobs()) == jobs


async def test_a_plan_that_would_be_refused_fails_as_the_verb_would(say: Say) -> None:
    await furnish(say)
    result = await say("delete web1 --dry-run")
    assert result.code == InUse.exit_code
    with pytest.raises(Taken):
        raise (await say("rename db1 web1 --dry-run")).failures[0].error


# --- hosts --------------------------------------------------------------------------------


def outside(cluster: vagoth.Cluster, name: str) -> SimHost:
    """A simulated host as somebody with a console on it treats it."""
    return SimHost(cluster.config.state_dir, cluster[name].id)


async def test_poll_reports_each_host_and_whose_guests_it_has(
    say: Say, cluster: vagoth.Cluster
) -> None:
    await furnish(say)
    outside(cluster, "hv1").define_foreign("stranger")
    found = {row["host"]: row for row in rows(await say("poll"))}
    assert (found["hv1"]["guests"], found["hv1"]["strangers"]) == (2, 1)
    assert (found["hv3"]["guests"], found["hv3"]["state"]) == (0, "up")
    assert [row["host"] for row in rows(await say("poll hv2"))] == ["hv2"]


async def test_a_host_in_trouble_is_reported_once_and_the_others_are_polled(
    say: Say, cluster: vagoth.Cluster
) -> None:
    await furnish(say)
    outside(cluster, "hv2").refuse()
    outside(cluster, "hv2").drop()
    result = await say("poll")
    assert [failure.about for failure in result.failures] == ["hv2"]
    assert result.code == HostError.exit_code
    states = {row["host"]: row["state"] for row in rows(result)}
    assert states == {"hv1": "up", "hv2": "unreachable", "hv3": "up"}


async def test_poll_is_for_hosts(say: Say) -> None:
    await furnish(say)
    with pytest.raises(InvalidInput, match="web1"):
        await say("poll web1")
    with pytest.raises(NodeNotFound, match="did you mean hv"):
        await say("poll hv11")


async def test_check_tells_what_fails_and_its_cure(say: Say, cluster: vagoth.Cluster) -> None:
    assert (await say("check")).code == 0
    await cluster["hv2"].set(definition={"down": "refuse"})
    result = await say("check hv1 hv2")
    assert result.code == HostError.exit_code
    failed = [row for row in rows(result) if row["outcome"] == "failed"]
    assert {row["host"] for row in failed} == {"hv2"}
    assert all(row["cure"] for row in failed)


async def waits(cluster: vagoth.Cluster) -> bool:
    """Whether a job waits for a guest, after a moment."""
    await asyncio.sleep(0.01)
    return any(job.step.startswith("waiting") for job in cluster.scheduler.active())


async def test_a_lost_answer_is_an_unknown_outcome(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    host = outside(cluster, "hv1")
    host.deafen()
    task = asyncio.ensure_future(say("shutdown web1"))
    async with asyncio.timeout(10):
        # A job tells nobody of its steps.
        while not await waits(cluster):
            pass
    host.set_fault(refuse=1.0)
    host.drop()
    result = await task
    assert result.code == OutcomeUnknown.exit_code
    [row] = rows(result)
    assert row["outcome"] == "unknown"


# --- following ----------------------------------------------------------------------------


async def test_watch_prints_changes_as_they_arrive(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    result = await say("watch")
    assert result.lines is not None
    lines = aiter(result.lines)
    first = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    await cluster.monitor.met()
    async with cluster.transaction(source="deploy", reason="CHG-1"):
        await cluster["web1"].submit("stop")
    told = [await first]
    while "→ stopped" not in told[-1].text:
        told.append(await anext(lines))
    assert "web1" in told[-1].text
    assert "(deploy: CHG-1, " in told[-1].text
    await lines.aclose()
    assert not cluster.monitor.is_following


async def test_watch_as_json_is_one_object_for_each_commit(
    say: Say, cluster: vagoth.Cluster
) -> None:
    result = await say("watch --json")
    assert result.lines is not None
    lines = aiter(result.lines)
    first = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    await cluster.new("x1", definition={"memory": 64})
    while True:
        data = (await first).data
        if data["changes"][0]["name"] == "x1":
            break
        first = asyncio.ensure_future(anext(lines))
    assert data["changes"][0]["change"] == "new"
    assert data["changes"][0]["fields"]["name"] == {"before": None, "after": "x1"}
    await lines.aclose()


async def test_jobs_shows_ours_and_what_others_left(say: Say, cluster: vagoth.Cluster) -> None:
    await furnish(say)
    intent = Intent(action="start", txid="abc", since=1.0, owner=this_process(), args={})
    await cluster.registry.update(cluster["db1"].id, lambda record: replace(record, intent=intent))
    found = rows(await say("jobs"))
    assert {row["who"] for row in found if row["node"] == "web1"} == {"this process"}
    [left] = [row for row in found if row["node"] == "db1" and row["transaction"] == "abc"]
    assert (left["action"], left["state"]) == ("start", "left")
    async with cluster.registry.lock(cluster["db1"].id):
        [held] = [row for row in rows(await say("jobs")) if row["transaction"] == "abc"]
    assert held["state"] == "running"


# --- bad input ----------------------------------------------------------------------------

BAD = [
    ("new web1 memory=128", Conflict, "taken by web1"),
    ("new x memory=128 --key asset:1", Conflict, "taken by web1"),
    ("new x", InvalidInput, "memory is missing"),
    ("new x memory=lots", InvalidInput, "memory: 'lots' is not a size"),
    ("new x memory=-1", InvalidInput, "memory: -1 is not a size"),
    ("new x memory=128 vcpus=0", InvalidInput, "vcpus: 0"),
    ("new x memroy=128", InvalidInput, "did you mean memory"),
    ("new x memory=128 kind=vmx", InvalidInput, "one of kvm, qemu, lxc"),
    ("new x memory", InvalidInput, "FIELD=VALUE"),
    ("new x =1", InvalidInput, "FIELD=VALUE"),
    ("new x memory=128 nics=lan", InvalidInput, "nics"),
    ("new x memory=128 'a b=1'", InvalidInput, "'a b' is not a known field"),
    ("new x memory=128 boot..kernel=/x", InvalidInput, "dotted path"),
    ("new '' memory=128", InvalidInput, "name: ''"),
    ("new a/b memory=128", InvalidInput, "name: 'a/b'"),
    ("new 'a\nb' memory=128", InvalidInput, "name"),
    (f"new {'x' * 64} memory=128", InvalidInput, "1 to 63 characters"),
    ("new x memory=128 --key nocolon", InvalidInput, "--key: 'nocolon'"),
    ("new x memory=128 --key uuid:1", InvalidInput, "follows from the definition"),
    ("new x memory=128 --tag =v", InvalidInput, "--tag"),
    ("new x memory=128 --tag env=", InvalidInput, "--tag"),
    ("new x memory=128 --link a", InvalidInput, "--link"),
    ("new x memory=128 --link a=nobody", NodeNotFound, "no node 'nobody'"),
    ("new x memory=128 --state up", InvalidInput, "state"),
    ("new x --type vmm", InvalidInput, "did you mean vm"),
    ("new x --type hv", InvalidInput, "driver"),
    ("new x --type hv driver=libvrit", InvalidInput, "did you mean libvirt"),
    ("set web1", InvalidInput, "nothing to change"),
    ("set nobody --tag a", NodeNotFound, "no node 'nobody'"),
    ("set web1 --name web2", Conflict, "taken by web2"),
    ("set web1 --name 'a b'", InvalidInput, "name: 'a b'"),
    ("set web1 --key asset:1x/", InvalidInput, "--key"),
    ("set web1 --no-key asset:7", InvalidInput, "asset:7"),
    ("set web1 --state running", InvalidInput, "state"),
    ("set web1 uuid=nonsense", InvalidInput, "uuid"),
    ("set web1 memory=", InvalidInput, "memory is missing"),
    ("rename web1 web2", Conflict, "taken by web2"),
    ("rename web1 hv1", Conflict, "taken by hv1"),
    ("delete web1", Conflict, "placed on hv1"),
    ("delete hv1", Conflict, "carries web1"),
    ("delete nobody", NodeNotFound, "nobody"),
    ("start db1 --on web1", InvalidInput, "hypervisor"),
    ("start db1 --on hv11", NodeNotFound, "did you mean hv1"),
    ("start web1 --on hv2", Conflict, "hv1"),
    ("migrate web1 web2", InvalidInput, "hypervisor"),
    ("undefine web1", Conflict, "run"),
    ("shutdown web1 --grace 0", InvalidInput, "--grace"),
    ("shutdown web1 --grace nan", InvalidInput, "--grace"),
    ("list nobody", NodeNotFound, "nobody"),
    ("list --type vmm", InvalidInput, "did you mean vm"),
    ("list --state runing", InvalidInput, "did you mean running"),
    ("list --parent nobody", NodeNotFound, "nobody"),
    ("list --tag ''", InvalidInput, "--tag"),
    ("help strat", InvalidInput, "did you mean start"),
    ("monitor --json x", InvalidInput, "no further argument"),
    ("poll --dry-run", InvalidInput, "poll writes down what it sees"),
    ("watch --dry-run", InvalidInput, "written down"),
    ("exit", InvalidInput, "a command of the shell"),
]


@pytest.mark.parametrize(("line", "kind", "told"), BAD, ids=[line for line, _, _ in BAD])
async def test_bad_input_is_refused_whole(
    line: str, kind: type[VagothError], told: str, say: Say, store: Path
) -> None:
    await furnish(say)
    before = store.read_bytes()
    with pytest.raises(kind) as caught:
        await say(line)
    assert told in str(caught.value)
    assert store.read_bytes() == before


@pytest.mark.parametrize("name", ["$(reboot)", "<x>&\"'", "x;ls", "ünï", "名前"])
async def test_odd_names_are_text_and_no_more(name: str, say: Say, cluster: vagoth.Cluster) -> None:
    await say(f"new {quoted(name)} memory=64")
    await say(f"start {quoted(name)}")
    assert cluster[name].state == "running"
    assert names(await say(f"list {quoted(name)}")) == [name]
