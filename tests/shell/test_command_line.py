"""``vagoth`` as a process: what scripts and pipes can rely on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vagoth
from tests.shell.conftest import Program, command
from vagoth import __version__
from vagoth.config import load_config
from vagoth.drivers.sim import SimHost

TIMEOUT_S = 15


async def _furnish(store: Path, *, deaf: bool = False) -> None:
    async with vagoth.connect(store=store, sim=3) as cluster:
        await cluster.new("web1", definition={"memory": 128}, tags={"env": "prod"})
        await cluster.new("web2", definition={"memory": 128})
        await cluster["web1"].submit("start", on="hv1")
        if deaf:
            await cluster["hv1"].set(definition={"deaf": True})


@pytest.fixture
def furnished(program: Program, store: Path) -> Program:
    """A store with web1 running on hv1, and web2 without a host."""
    asyncio.run(_furnish(store))
    return program


@pytest.fixture
def deaf(program: Program, store: Path) -> Program:
    """As furnished; and hv1 does not hear requests to shut down."""
    asyncio.run(_furnish(store, deaf=True))
    return program


def test_a_life_from_new_to_gone(program: Program, store: Path) -> None:
    steps = [
        ("new web1 memory=128 kind=qemu boot.kernel=/k boot.initrd=/i", "new"),
        ("start web1", "running"),
        ("migrate web1 hv2", "running"),
        ("stop web1", "stopped"),
        ("undefine web1", "new"),
    ]
    for line, state in steps:
        done = program(*line.split())
        assert (done.returncode, done.stderr) == (0, ""), line
        told = json.loads(program("--json", "info", "web1").stdout)
        assert told["state"] == state, line
    assert program("delete", "web1").returncode == 0
    assert program("info", "web1").returncode == 3
    assert isinstance(json.loads(store.read_text()), dict)


def test_json_is_alone_on_standard_output(furnished: Program) -> None:
    nodes = json.loads(furnished("list", "--json").stdout)
    assert [node["name"] for node in nodes] == ["hv1", "hv2", "hv3", "web1", "web2"]
    for line in (
        "tree",
        "info web1",
        "poll",
        "check",
        "jobs",
        "start web2",
        "stop web2 --dry-run",
        "set web2 --tag a=b",
    ):
        done = furnished(*line.split(), "--json")
        assert done.returncode == 0, line
        json.loads(done.stdout)
        assert done.stderr == ""


def test_in_json_too_errors_stay_on_standard_error(furnished: Program) -> None:
    done = furnished("--json", "info", "nobody")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("vagoth: there is no node 'nobody'")
    done = furnished("--json", "delete", "web1", "web2")
    assert done.returncode == 4
    outcomes = json.loads(done.stdout)
    assert [each["outcome"] for each in outcomes] == ["failed", "done"]
    assert "placed on" in outcomes[0]["error"]


def test_into_a_pipe_go_columns_without_colour(furnished: Program) -> None:
    lines = furnished("list").stdout.splitlines()
    assert lines[0].split()[:4] == ["NAME", "TYPE", "STATE", "PARENT"]
    assert [line.split()[0] for line in lines[1:]] == ["hv1", "hv2", "hv3", "web1", "web2"]
    assert all(line.isascii() and line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("start web1", 0),
        ("lst", 2),
        ("list --typ vm", 2),
        ("new web3 memory=lots", 2),
        ("info wbe1", 3),
        ("new web1 memory=1", 4),
        ("start web1 --on hv3 --wait 0", 4),
        ("delete web1", 4),
    ],
)
def test_exit_codes_say_which_case_it_is(line: str, code: int, furnished: Program) -> None:
    done = furnished(*line.split())
    assert done.returncode == code, done.stderr
    told = done.stderr.splitlines()
    assert len(told) == (0 if code == 0 else 1)
    assert "Traceback" not in done.stderr


def test_a_host_that_is_gone_is_told_once_and_the_code_is_5(
    furnished: Program, store: Path
) -> None:
    hosts = {n["name"]: n["id"] for n in json.loads(furnished("list", "--json").stdout)}
    SimHost(load_config(store=store).state_dir, hosts["hv3"]).refuse()
    done = furnished("poll")
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert "hv3" in done.stderr
    assert [row.split()[1] for row in done.stdout.splitlines()[1:]] == ["up", "up", "unreachable"]
    assert furnished("check", "hv3").returncode == 5
    assert furnished("check", "hv1").returncode == 0


def test_debug_shows_where_an_error_comes_from(furnished: Program) -> None:
    done = furnished("info", "nobody", "--debug")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_version_and_help_need_no_store(program: Program, tmp_path: Path) -> None:
    nowhere = {"HOME": str(tmp_path / "nowhere"), "VAGOTH_CONFIG": "/nonexistent"}
    assert program("--version", environment=nowhere).stdout == f"vagoth {__version__}\n"
    for flag in ("--help", "help"):
        done = program(flag, environment=nowhere)
        assert done.returncode == 0
        assert "usage: vagoth" in done.stdout
    for arguments in (("start", "--help"), ("help", "start"), ("--help", "start")):
        done = program(*arguments, environment=nowhere)
        assert done.stdout.startswith("usage: start NAME… [--on HOST]")
        assert done.returncode == 0


def test_without_a_command_and_a_terminal_help_goes_to_standard_error(program: Program) -> None:
    done = program()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: vagoth" in done.stderr


def test_the_shell_needs_a_terminal(program: Program) -> None:
    done = program("shell")
    assert done.returncode == 2
    assert done.stderr == "vagoth: the shell needs a terminal\n"


# --- configuration and store ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[store\n", "line 1: not TOML"),
        ('[store]\npaht = "x"\n', "line 2: store.paht is not a known field (did you mean path?)"),
        ("[hosts]\nconnect_timeout_s = 'long'\n", "line 2"),
    ],
)
def test_a_wrong_configuration_is_told_with_its_line(
    text: str, told: str, program: Program, tmp_path: Path
) -> None:
    path = tmp_path / "vagoth.toml"
    path.write_text(text)
    done = program("--config", str(path), "list")
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("text", ["not json", '{"somebody": "else"}', "[]"])
def test_a_store_that_is_not_ours_is_left_alone(text: str, program: Program, store: Path) -> None:
    store.write_text(text)
    for line in ("list", "new x memory=1"):
        done = program(*line.split())
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert store.read_text() == text


@pytest.mark.parametrize(
    "line",
    ["start wbe1", "new web1 memory=1", "set web1 memroy=1", "delete web1", "xyzzy", "list --jsn"],
)
def test_what_is_refused_leaves_each_byte_of_the_store(
    line: str, furnished: Program, store: Path
) -> None:
    before = store.read_bytes()
    assert furnished(*line.split()).returncode in (2, 3, 4)
    assert store.read_bytes() == before


# --- as any good Unix tool ------------------------------------------------------------------


def test_nobody_reading_its_output_ends_it_quietly(furnished: Program, store: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command("--store", str(store), "list"),
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        timeout=TIMEOUT_S,
    )
    os.close(writer)
    assert done.returncode == -signal.SIGPIPE
    assert done.stderr == b""


def test_a_full_disk_is_told(furnished: Program, store: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("--store", str(store), "list"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    assert done.returncode == 1
    assert done.stderr == "vagoth: standard output cannot be written: No space left on device\n"


def test_a_closed_standard_output_is_told(furnished: Program, store: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *command("--store", str(store), "list")],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 1
    assert done.stderr == "vagoth: standard output is closed\n"


def test_names_that_the_terminal_cannot_show_are_written_out(program: Program) -> None:
    assert program("new", "ünï", "memory=1").returncode == 0
    done = program("list", "ünï", environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "\\xfcn\\xef" in done.stdout


def begun(store: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begin a command, and return when web1's node lock or the stream is taken."""
    return subprocess.Popen(
        command("--store", str(store), "--debug", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read its log up to a line that holds ``text``."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"it ended before {text!r}: {seen}")


def test_interrupted_it_says_what_is_known_and_exits_130(deaf: Program, store: Path) -> None:
    with begun(store, "shutdown", "web1") as process:
        wait_for(process, "shutdown web1: begun")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "cancelled" in out
    assert "running" in out
    assert "interrupted" in err
    assert json.loads(deaf("info", "web1", "--json").stdout)["state"] == "running"


def test_terminated_it_puts_things_in_order_and_dies_of_it(deaf: Program, store: Path) -> None:
    with begun(store, "shutdown", "web1") as process:
        wait_for(process, "shutdown web1: begun")
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == -signal.SIGTERM
    assert json.loads(deaf("info", "web1", "--json").stdout)["state"] == "running"


def test_watch_prints_what_other_processes_do_and_is_ended_by_ctrl_c(
    furnished: Program, store: Path
) -> None:
    with subprocess.Popen(
        command("--store", str(store), "--json", "watch"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        # It cannot be seen from outside when it listens: do things until it tells of one.
        wait_until_told(process, furnished)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "Traceback" not in err


def wait_until_told(process: subprocess.Popen[str], program: Program) -> None:
    """Change a tag again and again, until a watch has printed one of the changes."""
    import threading

    told = threading.Event()
    assert process.stdout is not None
    lines = process.stdout

    def read() -> None:
        for line in lines:
            data = json.loads(line)
            if any(change["name"] == "web2" for change in data["changes"]):
                told.set()
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for number in range(30):
        program("set", "web2", "--tag", f"n={number}")
        if told.wait(0.2):
            break
    assert told.is_set()
    reader.join()


def test_monitor_logs_with_source_and_is_ended_by_sigterm(furnished: Program, store: Path) -> None:
    with subprocess.Popen(
        command("--store", str(store), "monitor"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(process, "following the hosts")
        assert furnished("stop", "web1").returncode == 0
        seen = wait_for(process, "→ stopped")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in seen + err
    [line] = [line for line in seen.splitlines() if "→ stopped" in line]
    assert "web1" in line
    assert "stop web1" in line


def test_two_at_once_tell_who_works_on_the_node(deaf: Program, store: Path) -> None:
    with begun(store, "shutdown", "web1") as process:
        wait_for(process, "shutdown web1: begun")
        time.sleep(0.3)
        other = deaf("stop", "web1")
        told = deaf("jobs").stdout
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)
    assert other.returncode == 4
    assert f"process {process.pid}" in other.stderr
    assert f"process {process.pid}" in told or "shutdown" not in told


def test_edit_runs_the_editor_that_was_chosen(furnished: Program, tmp_path: Path) -> None:
    """Through a real terminal: an editor needs one."""
    pexpect = pytest.importorskip("pexpect")
    editor = tmp_path / "editor"
    editor.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "path.write_text(path.read_text().replace('128', '256'))\n"
    )
    editor.chmod(0o755)
    store = tmp_path / "store.json"
    child = pexpect.spawn(
        sys.executable,
        [*command("--store", str(store), "edit", "web2")[1:]],
        env={**os.environ, "EDITOR": str(editor), "VISUAL": "", "TERM": "xterm"},
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert json.loads(furnished("info", "web2", "--json").stdout)["definition"]["memory"] == 256
