"""SSH connections: one for each host, which carries all there is to say to it.

This package alone imports asyncssh, and only when a first connection is made. Host keys are
always checked; ``~/.ssh/config``, agents and jump hosts are honoured as asyncssh reads them.
"""

from vagoth.ssh.connection import Passed, Result, SSHConnection, connect
from vagoth.ssh.target import SSHTarget

__all__ = ["Passed", "Result", "SSHConnection", "SSHTarget", "connect"]
