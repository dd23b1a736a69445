"""The processes of a run watch one another: when one ends prematurely, all learn at once which.

What torchrun does by itself (tried with PyTorch 2.13, two agents): half a second after a process has ended it
ends the others of the same machine, and names the first in a report of thirty lines. What it does not do, and
is done here:

- The other machines are not told. A process there that works alone, as in sampling, went on until its next
  collective operation, which for NCCL waits without a limit (`processes.NO_TIMEOUT`). So every process keeps
  a connection to the main one. When a process ends, for whatever reason, its system closes that connection;
  the main process names it to the others, and all of them end. Nothing is sent in the meantime, so a process
  that is merely slow is left alone.
- A torchrun that is killed leaves its processes running, as it starts each in a session of its own, which no
  signal to the terminal or the job reaches. They check for that themselves.
- One line says which process stopped, where and why, and an error that all of them meet is printed once.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRACE, LEAVE = 5.0, 20.0
"""Seconds for the work of a process to end by itself after another one has stopped, and then for the process
to exit."""
_CONNECT_TIMEOUT, _POLL_INTERVAL = 30.0, 1.0
_KILLED = "it was killed, or its machine or network failed"


@dataclass(frozen=True)
class ProcessName:
    """A process's name in messages."""

    rank: int
    host: str
    pid: int

    @classmethod
    def own(cls, rank: int) -> ProcessName:
        return cls(rank, socket.gethostname(), os.getpid())


@dataclass(frozen=True)
class Stopped:
    """A process that stopped prematurely."""

    rank: int
    reason: str


@dataclass
class Watch:
    """One process's view of the others."""

    rank: int
    members: list[ProcessName]
    peers: dict[int, socket.socket]
    """Connections by rank: the main process has one to every other, the others have one to it."""
    leave: Callable[[int], None] = os._exit
    """Ends a process whose work is stuck in a collective operation, which Python cannot interrupt."""
    stopped: Stopped | None = None
    """The first other process that stopped prematurely."""
    news: threading.Event = field(default_factory=threading.Event)
    """Set once `stopped` is known."""
    ending: threading.Event = field(default_factory=threading.Event)
    """Set when this process ends by itself, successfully or not."""
    main_spoke: threading.Event = field(default_factory=threading.Event)
    """Set once the main process has ended or has sent its only message."""
    main_failure: str = ""
    """Reason why the main process, or the one that it named, failed."""

    def start(self) -> Watch:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def message(self) -> str:
        """The line that says which process stopped."""
        assert self.stopped is not None
        member = self.members[self.stopped.rank]
        return (
            f"process {member.rank} of {len(self.members)} ({member.host}, pid {member.pid}) stopped: "
            f"{self.stopped.reason}; the others end too, the same command goes on from the last checkpoint"
        )

    @property
    def reports(self) -> bool:
        """True for the one remaining process that informs the user."""
        return self.stopped is not None and self.rank == (1 if self.stopped.rank == 0 else 0)

    def end(self, failure: str = "") -> None:
        """Tell the others that this process is about to end, and why if it failed."""
        self.ending.set()
        for peer in self.peers.values():
            _send(peer, {"failed": failure} if failure else {"left": True})

    def main_reports(self, failure: str, seconds: float) -> bool:
        """True if the main process reports the same failure within this time: an error that all processes
        meet is then printed once."""
        return self.rank != 0 and self.main_spoke.wait(seconds) and self.main_failure == failure

    # --- the listening thread -------------------------------------------------------------------------

    def _listen(self) -> None:
        """Receive the only message of each process, its last; the main one's may be about another."""
        with selectors.DefaultSelector() as selector:
            for rank, peer in self.peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    selector.unregister(key.fileobj)
                    self._hear(_receive(key.fileobj), key.data)

    def _hear(self, said: dict[str, Any] | None, rank: int) -> None:
        if rank == 0:
            words = said or {}
            self.main_failure = words.get("failed") or words.get("reason", "")
            self.main_spoke.set()
        if said is None:
            self._note(Stopped(rank, _KILLED))
        elif "failed" in said:
            self._note(Stopped(rank, said["failed"]))
        elif "stopped" in said:
            self._note(Stopped(said["stopped"], said["reason"]))

    def _note(self, stopped: Stopped) -> None:
        """Record that a process has stopped, tell the others, and have this one end."""
        if self.stopped is not None or self.ending.is_set():
            return
        self.stopped = stopped
        for rank, peer in self.peers.items():
            if self.rank == 0 and rank != stopped.rank:
                _send(peer, {"stopped": stopped.rank, "reason": stopped.reason})
        self.news.set()
        threading.Thread(target=self._end_soon, daemon=True).start()

    def _end_soon(self) -> None:
        if self.ending.wait(GRACE):
            time.sleep(LEAVE)
        elif self.reports:
            print(f"causalfusion: {self.message()}", file=sys.stderr, flush=True)
        self.leave(1)


def end_with_launcher() -> None:
    """Send this process SIGTERM, as torchrun would, once the torchrun that started it is gone."""
    launcher = os.getppid()
    alive = _may_be_launcher(launcher)

    def poll() -> None:
        while alive and os.getppid() == launcher:
            time.sleep(_POLL_INTERVAL)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=poll, daemon=True).start()


def _may_be_launcher(process: int) -> bool:
    """True if this parent process can be torchrun, which is Python. If torchrun was gone already, the parent
    is whatever adopts orphans: the first process of the system or container, or a session's manager."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # not Linux, or another user's process
        return process != 1
    return b"python" in command or b"torch" in command


@contextmanager
def time_to_report(watch: Watch) -> Iterator[None]:
    """Delay SIGTERM until this process knows whether another one has stopped. torchrun sends it as soon as
    one process has ended; the remaining ones shall report that first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def delayed(number: int, _: Any) -> None:
        end = time.monotonic() + _POLL_INTERVAL
        while not watch.news.is_set() and time.monotonic() < end:  # wait() might deadlock in a signal handler
            time.sleep(0.05)
        if not watch.news.is_set():
            signal.signal(number, before)
            os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, delayed)
    try:
        yield
    finally:
        if not watch.news.is_set():  # otherwise this process is about to end anyway
            signal.signal(signal.SIGTERM, before)


def open_watch() -> tuple[socket.socket, int, str]:
    """(socket, port, token) of the main process: where it listens, and the secret that others must send."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=1024)
    return server, server.getsockname()[1], secrets.token_hex(16)


def host_watch(server: socket.socket, token: str, members: list[ProcessName]) -> Watch:
    """The main process's watch, once the others have joined; it continues without those that cannot."""
    peers: dict[int, socket.socket] = {}
    server.settimeout(_CONNECT_TIMEOUT)
    with server, suppress(TimeoutError):
        while len(peers) < len(members) - 1:
            peer, _ = server.accept()
            peer.settimeout(_CONNECT_TIMEOUT)
            said = _receive(peer) or {}
            if said.get("token") == token:
                peers[said["rank"]] = _kept_alive(peer)
            else:
                peer.close()
    return Watch(0, members, peers).start()


def join_watch(rank: int, address: tuple[str, int], token: str, members: list[ProcessName]) -> Watch:
    """Another process's watch. If the main process cannot be reached, it watches nobody and prints a line."""
    try:
        peer = _kept_alive(socket.create_connection(address, timeout=_CONNECT_TIMEOUT))
        _send(peer, {"token": token, "rank": rank})
    except OSError as error:
        where = f"{address[0]} port {address[1]}"
        print(
            f"process {rank} cannot reach the main one at {where} ({error}): if one of them stops, it may "
            "take minutes to be noticed",
            file=sys.stderr,
        )
        return Watch(rank, members, {})
    return Watch(rank, members, {0: peer}).start()


def _kept_alive(peer: socket.socket) -> socket.socket:
    """Have the system check that the other side still exists: a machine that loses power closes nothing."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


def _send(peer: socket.socket, message: dict[str, object]) -> None:
    with suppress(OSError):
        peer.sendall(json.dumps(message).encode() + b"\n")


def _receive(peer: socket.socket) -> dict[str, Any] | None:
    """The next message; None if the connection has ended or the message is invalid."""
    line = b""
    try:
        while not line.endswith(b"\n"):
            part = peer.recv(1)
            if not part:
                return None
            line += part
        return json.loads(line)
    except (OSError, ValueError):
        return None
