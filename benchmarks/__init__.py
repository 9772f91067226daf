"""Vagoth beside its peers, in one run: ``make bench``, or ``python -m benchmarks [NAMES…]``.

How it is measured:

- What is compared takes turns, A B C A B C …, after one turn that does not count. A disturbance of
  the machine then meets all of them, and caches are equally warm; Python's bytecode among them.
- A command is timed as a whole, from its start to its end, with its output going into a pipe and
  its exit status checked. What keeps its connections open lives in a process of its own, with
  nothing else in it, and times one round by itself.
- Each figure is the median of all turns, with the shortest and the longest. Each ratio is Vagoth's
  time over the peer's *within one turn*, then the median of those, with the lowest and the highest:
  below 1, Vagoth is faster. What wanders with the machine's load wanders out of a ratio.
- Rounds end when there are enough, or when the benchmark's time is up, but never before three.
- Hosts are the test lab's: real sshd and libvirtd, in network namespaces of this machine. So the
  network takes no time, and hosts and controller share the same processors. Peers and Vagoth
  connect as the same user, with the same key and the same checks of host keys.
- Nothing is read or written but a temporary folder, the lab, and installed programs. Where there
  can be no lab, what needs one is left out, by name and with the reason.
"""
