"""SSH connections, to a real sshd on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from vagoth.errors import (
    ConfigError,
    HostError,
    HostKeyError,
    HostUnreachable,
    InvalidInput,
    LoginRefused,
    OutcomeUnknown,
    PassphraseNeeded,
    VagothError,
)
from vagoth.ssh import SSHConnection, SSHTarget, connect
from vagoth.ssh.config import read_settings, unsupported
from vagoth.ssh.errors import Attempt, translate

SSHD = Path("/usr/sbin/sshd")
needs_sshd = pytest.mark.skipif(not SSHD.exists(), reason="there is no sshd on this machine")

ODD = [
    "$(reboot)",
    "`reboot`",
    "a b",
    "a;b",
    "'",
    '"',
    "\\",
    "-n",
    "*",
    "~",
    "<x>&",
    "naïve 名",
    "",
]


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


def keygen(path: Path, *, passphrase: str = "", kind: str = "ed25519") -> Path:
    run("ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "", "-f", path)
    return path


def encrypt(key: Path) -> None:
    run("ssh-keygen", "-q", "-p", "-N", "open sesame", "-f", key)


@dataclass
class Server:
    """A real sshd on loopback, and a client's files that let in whoever uses them."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def key(self) -> Path:
        return self.folder / "key"

    def drop(self) -> None:
        """Kill the processes that serve connections."""
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)

    def trust(self, host_key: Path | None = None) -> None:
        public = (host_key or self.folder / "host_key").with_suffix(".pub").read_text()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}")

    def configure(self, *lines: str, key: Path | None = None) -> None:
        self.config.write_text(
            "\n".join(
                [
                    "Host box",
                    *lines,
                    "HostName 127.0.0.1",
                    f"Port {self.port}",
                    f"User {getpass.getuser()}",
                    f"IdentityFile {key or self.key}",
                    "IdentitiesOnly yes",
                    f"UserKnownHostsFile {self.known_hosts}",
                    "",
                ]
            )
        )

    async def connect(self, target: str = "box", **options: Any) -> SSHConnection:
        options = {"config": self.config, "timeout_s": 5, **options}
        return await connect("hv1", SSHTarget.parse(target), **options)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if not SSHD.exists():
        pytest.skip("there is no sshd on this machine")
    if os.geteuid() == 0:
        # Where it gives up its rights, as the service's own start makes it.
        Path("/run/sshd").mkdir(exist_ok=True)
    folder = tmp_path / "ssh"
    folder.mkdir()
    keygen(folder / "host_key")
    keygen(folder / "key")
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    port = free_port()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    process = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL
    )
    server = Server(folder, port, process)
    server.trust()
    server.configure()
    try:
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
        yield server
    finally:
        server.drop()
        process.kill()
        process.wait()


@pytest.fixture
async def box(server: Server) -> AsyncIterator[SSHConnection]:
    connection = await server.connect()
    yield connection
    await connection.close()


# --- where to -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hv1", SSHTarget("hv1")),
        ("root@hv1", SSHTarget("hv1", "root")),
        ("root@hv1:2222", SSHTarget("hv1", "root", 2222)),
        ("me@corp.example@hv1", SSHTarget("hv1", "me@corp.example")),
        ("hv1.example.org:22", SSHTarget("hv1.example.org", None, 22)),
        ("[::1]:22", SSHTarget("::1", None, 22)),
        ("root@[fe80::1%eth0]", SSHTarget("fe80::1%eth0", "root")),
        ("::1", SSHTarget("::1")),
        ("root@fe80::1", SSHTarget("fe80::1", "root")),
        ("10.0.0.5", SSHTarget("10.0.0.5")),
    ],
)
def test_a_target_is_read(text: str, expected: SSHTarget) -> None:
    assert SSHTarget.parse(text) == expected
    assert SSHTarget.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "-oProxyCommand=reboot", "root@-oProxyCommand=x", "-x@hv1", "@hv1", "root@"),
        *("hv1:", "hv1:0", "hv1:65536", "hv1:ssh", "h v", "hv1\n", "a@b:c:1", "[hv1]", "[1.2.3.4]"),
        *("hv1;reboot", "$(reboot)", "hv1/x", "`x`", "ssh://hv1", "hv1:22:22", "[::1"),
    ],
)
def test_a_malformed_target_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        SSHTarget.parse(text)
    assert (refused.value.field, refused.value.value) == ("ssh", text)


# --- ssh_config -----------------------------------------------------------------------


def test_what_is_not_supported_is_named() -> None:
    text = """
        # Comment yes
        Host *
            StrictHostKeyChecking accept-new
            ControlMaster auto
            VerifyHostKeyDNS yes
            RevokedHostKeys=/etc/revoked
            port 22
    """
    assert unsupported(text) == [
        "StrictHostKeyChecking accept-new",
        "VerifyHostKeyDNS",
        "RevokedHostKeys",
    ]
    assert unsupported("StrictHostKeyChecking yes") == []


def test_what_is_not_supported_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "config"
    config.write_text("VerifyHostKeyDNS yes\n")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            read_settings(SSHTarget("hv1"), config, None)
    assert [record.getMessage() for record in caplog.records] == [
        f"{config}: VerifyHostKeyDNS is not supported, and is passed over"
    ]


def test_a_malformed_config_is_refused_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  Port twenty\n")
    with pytest.raises(ConfigError) as refused:
        read_settings(SSHTarget("hv1"), config, None)
    assert (refused.value.path, refused.value.line) == (str(config), 2)


def test_a_config_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_settings(SSHTarget("hv1"), tmp_path / "missing", None)


def test_what_a_target_says_counts_more_than_the_config(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host hv1\n HostName 10.0.0.5\n Port 2222\n User vagoth\n")
    plain = read_settings(SSHTarget("hv1"), config, None)
    assert (plain.host, plain.port, plain.user) == ("10.0.0.5", 2222, "vagoth")
    said = read_settings(SSHTarget("hv1", "root", 22), config, None)
    assert (said.host, said.port, said.user) == ("10.0.0.5", 22, "root")


def test_known_hosts_none_does_not_switch_the_check_off(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("UserKnownHostsFile none\n")
    assert all(
        str(path).startswith("/etc/ssh/")
        for path in read_settings(SSHTarget("hv1"), config, None).known_hosts_files
    )


async def test_a_host_is_unknown_where_known_hosts_is_none(server: Server) -> None:
    server.config.write_text(server.config.read_text().replace(str(server.known_hosts), "none"))
    with pytest.raises(HostKeyError, match="unknown"):
        await server.connect()


async def test_an_identity_that_is_not_there_is_passed_over(server: Server) -> None:
    server.configure(f"IdentityFile {server.folder}/missing")
    await (await server.connect()).close()


# --- what goes wrong ------------------------------------------------------------------


async def refusal(server: Server, target: str = "box", **options: Any) -> HostError:
    """What connecting fails with: always an error of ours, about the host, with a cure."""
    with pytest.raises(HostError) as refused:
        await server.connect(target, **options)
    assert refused.value.host.startswith("hv1")
    assert refused.value.cure
    return refused.value


async def test_an_unknown_host_key_is_named_with_its_cure(server: Server) -> None:
    server.known_hosts.write_text("")
    error = await refusal(server)
    assert type(error) is HostKeyError
    fingerprint = asyncssh.read_public_key(server.folder / "host_key.pub").get_fingerprint()
    assert "unknown" in error.problem
    assert fingerprint in error.problem
    assert f"ssh-keyscan -H -p {server.port} 127.0.0.1 >> {server.known_hosts}" in error.cure


async def test_a_changed_host_key_is_told_from_an_unknown_one(server: Server) -> None:
    server.trust(keygen(server.folder / "former"))
    error = await refusal(server)
    assert type(error) is HostKeyError
    assert "changed" in error.problem
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in error.cure


async def test_a_host_key_of_another_type_has_changed(server: Server) -> None:
    server.trust(keygen(server.folder / "former", kind="ecdsa"))
    error = await refusal(server)
    assert type(error) is HostKeyError
    assert "changed" in error.problem


async def test_a_refused_login_says_who_and_what_was_tried(server: Server) -> None:
    other = keygen(server.folder / "other")
    server.configure(key=other)
    error = await refusal(server)
    assert type(error) is LoginRefused
    assert getpass.getuser() in error.problem
    assert str(other) in error.problem
    assert "publickey" in error.problem


async def test_having_no_key_is_said(server: Server) -> None:
    server.configure(key=server.folder / "missing")
    error = await refusal(server)
    assert type(error) is LoginRefused
    assert "having none" in error.problem


async def test_an_encrypted_key_needs_its_passphrase(server: Server) -> None:
    secret = keygen(server.folder / "secret", passphrase="open sesame")
    shutil.copy(secret.with_suffix(".pub"), server.folder / "authorized_keys")
    server.configure(key=secret)
    error = await refusal(server)
    assert type(error) is PassphraseNeeded
    assert str(secret) in error.problem
    assert f"ssh-add {secret}" in error.cure


@pytest.fixture
def agent(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = server.folder / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    while not path.exists():
        pass
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.terminate()
    process.wait()


async def test_an_agent_opens_an_encrypted_key(server: Server, agent: Path) -> None:
    secret = server.folder / "secret"
    shutil.copy(server.key, secret)
    shutil.copy(server.key.with_suffix(".pub"), secret.with_suffix(".pub"))
    run("ssh-add", "-q", server.key)
    encrypt(secret)
    server.configure(key=secret)
    await (await server.connect()).close()


async def test_an_agent_without_the_key_leaves_it_closed(server: Server, agent: Path) -> None:
    server.configure(key=keygen(server.folder / "secret", passphrase="open sesame"))
    assert type(await refusal(server)) is PassphraseNeeded


async def test_a_key_that_the_agent_holds_and_the_host_refuses_is_no_riddle(
    server: Server, agent: Path
) -> None:
    """It was tried, so a passphrase would not help."""
    other = keygen(server.folder / "other")
    run("ssh-add", "-q", other)
    encrypt(other)
    server.configure(key=other)
    assert type(await refusal(server)) is LoginRefused


async def test_a_closed_port_is_refused(server: Server) -> None:
    error = await refusal(server, f"127.0.0.1:{free_port()}")
    assert type(error) is HostUnreachable
    assert "refuses connections" in error.problem


async def test_a_name_that_does_not_resolve_is_named(server: Server) -> None:
    error = await refusal(server, "nowhere.invalid")
    assert type(error) is HostUnreachable
    assert "nowhere.invalid does not resolve" in error.problem


async def test_a_port_that_says_nothing_ends_in_time(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        error = await refusal(server, f"127.0.0.1:{port}", timeout_s=0.3)
    assert type(error) is HostUnreachable
    assert "within 0.3 s" in error.problem


async def test_what_is_no_ssh_server_is_unreachable(server: Server) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        error = await refusal(server, f"127.0.0.1:{port}")
    assert type(error) is HostUnreachable
    assert "closed the connection" in error.problem


def foreign_errors() -> list[BaseException]:
    """One of each kind of error that asyncssh has, and those of the network."""

    def kinds(base: type[BaseException]) -> Iterator[type[BaseException]]:
        for kind in base.__subclasses__():
            yield kind
            yield from kinds(kind)

    found: list[BaseException] = [asyncssh.ChannelOpenError(1, "why")]
    for kind in kinds(asyncssh.DisconnectError):
        found.append(kind("why"))  # noqa: PERF401 - each with a look at what it is
    found += [asyncssh.DisconnectError(14, "why"), asyncssh.KeyImportError("why")]
    found += [asyncssh.ConfigParseError("why"), asyncssh.KeyEncryptionError("why")]
    found += [socket.gaierror(-2, "why"), ConnectionRefusedError(), ConnectionResetError()]
    found += [TimeoutError(), OSError(113, "why"), OSError(1, "why"), ValueError("why")]
    return found


@pytest.mark.parametrize("error", foreign_errors(), ids=lambda error: type(error).__name__)
def test_no_error_of_asyncssh_passes_as_it_is(error: BaseException, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.touch()
    attempt = Attempt("hv1", read_settings(SSHTarget("hv1"), config, None), 5)
    translated = translate(error, attempt)
    assert isinstance(translated, VagothError)
    assert "unhandled" not in translated.message
    assert translated.exit_code in (2, 5)


# --- jump hosts -----------------------------------------------------------------------


async def test_a_jump_host_is_gone_through(server: Server) -> None:
    server.config.write_text(
        server.config.read_text().replace("Host box", "Host box jump far")
        + "Host far\n  ProxyJump jump\n"
    )
    connection = await server.connect("far")
    assert (await connection.run(["echo", "there"], timeout_s=5)).stdout == "there\n"
    assert connection.peer_address == "127.0.0.1"
    await connection.close()
    assert not connection.is_open


async def test_the_key_of_a_jump_host_is_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    server.config.write_text(
        f"Host jump\n  UserKnownHostsFile {tmp_path}/none\n"
        + server.config.read_text().replace("Host box", "Host jump far")
        + "Host far\n  ProxyJump jump\n"
    )
    error = await refusal(server, "far")
    assert type(error) is HostKeyError
    assert "at its jump host jump" in error.host


# --- what a connection carries ----------------------------------------------------------


async def test_arguments_arrive_as_they_are(box: SSHConnection) -> None:
    result = await box.run(["printf", "%s\\n", *ODD], timeout_s=5)
    assert result.stdout == "".join(f"{word}\n" for word in ODD)


async def test_a_command_tells_how_it_ended(box: SSHConnection) -> None:
    result = await box.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=5)
    assert (result.status, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert (await box.run(["sh", "-c", "kill -9 $$"], timeout_s=5)).status == -9


async def test_a_command_reads_nothing(box: SSHConnection) -> None:
    assert (await box.run(["cat"], timeout_s=5)).stdout == ""


async def test_a_command_that_does_not_end_is_in_doubt(box: SSHConnection) -> None:
    with pytest.raises(OutcomeUnknown, match=r"within 0\.2 s"):
        await box.run(["sleep", "60"], timeout_s=0.2)
    assert (await box.run(["echo", "on"], timeout_s=5)).stdout == "on\n"


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Path]:
    """A UNIX socket on the host that says again what it is told."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    path = tmp_path / "echo"
    async with await asyncio.start_unix_server(answer, path):
        yield path


async def test_a_socket_of_the_host_appears_here_for_this_user_alone(
    box: SSHConnection, echo: Path
) -> None:
    local = await box.forward_socket(str(echo))
    assert stat.S_IMODE(local.parent.stat().st_mode) == 0o700
    assert len(os.fsencode(local)) < 108
    reader, writer = await asyncio.open_unix_connection(local)
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    box.stop_forwarding(local)
    assert not local.exists()
    writer.write(b"still\n")
    assert await reader.readline() == b"still\n"
    writer.close()
    await box.close()
    assert not local.parent.exists()


async def test_a_long_path_to_the_runtime_folder_is_not_used(
    box: SSHConnection, echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    local = await box.forward_socket(str(echo))
    assert len(os.fsencode(local)) < 108
    assert list(long.iterdir()) == []


async def test_a_socket_is_reached_or_not(box: SSHConnection, echo: Path) -> None:
    assert await box.can_reach_socket(str(echo), timeout_s=5)
    assert not await box.can_reach_socket(str(echo) + "-not", timeout_s=5)


async def test_it_notices_when_the_other_side_goes(server: Server, box: SSHConnection) -> None:
    closed = asyncio.ensure_future(box.closed())
    running = asyncio.ensure_future(box.run(["sleep", "60"], timeout_s=30))
    await asyncio.sleep(0.2)
    assert box.is_open
    server.drop()
    async with asyncio.timeout(5):
        await closed
        with pytest.raises(OutcomeUnknown, match="lost"):
            await running
    assert not box.is_open
    with pytest.raises(HostUnreachable):
        await box.run(["true"], timeout_s=5)


async def test_closing_may_be_repeated_and_leaves_no_file(box: SSHConnection, echo: Path) -> None:
    folder = (await box.forward_socket(str(echo))).parent
    await asyncio.gather(box.close(), box.close())
    await box.close()
    assert not folder.exists()
    assert not box.is_open
