"""The processes of a run watch one another: when one ends before its time, all learn at once which.

A collective operation that waits for a process that is gone says no more than "connection closed", or waits
for many minutes. Here every process keeps one connection to the main one. When a process ends, whatever ended
it, its system closes that connection; the main process names it to the others, and all of them end. Nothing
is sent meanwhile: a process that is merely slow is left alone.

torchrun's death ends its processes too: they look for it, since it starts each in a session of its own, where
no signal to the terminal or the job reaches them.
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
"""Seconds in which the work of a process may come to an end by itself once another one has stopped, and then
the process."""
_CONNECT, _LOOK = 30.0, 1.0
_KILLED = "it was killed, or its machine or network failed"


@dataclass(frozen=True)
class Member:
    """One of the processes, as it is named to the user."""

    rank: int
    host: str
    pid: int

    @classmethod
    def own(cls, rank: int) -> Member:
        return cls(rank, socket.gethostname(), os.getpid())


@dataclass(frozen=True)
class Stopped:
    rank: int
    reason: str


@dataclass
class Watch:
    """What one process knows of the others."""

    rank: int
    members: list[Member]
    peers: dict[int, socket.socket]
    """Connections by rank: the main process has one to every other, the others have one to it."""
    leave: Callable[[int], None] = os._exit
    """How to end a process whose work waits for ever in a collective operation, out of Python's reach."""
    stopped: Stopped | None = None
    news: threading.Event = field(default_factory=threading.Event)
    """Set when another process has stopped before its time."""
    ending: threading.Event = field(default_factory=threading.Event)
    """Set when this process ends by itself, well or not."""
    main_spoke: threading.Event = field(default_factory=threading.Event)
    """Set when the main process has ended, or has sent its one message."""
    main_failure: str = ""
    """Why it, or the process that it told of, failed."""

    def start(self) -> Watch:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def message(self) -> str:
        """The one line that says which process stopped."""
        assert self.stopped is not None
        member = self.members[self.stopped.rank]
        return (
            f"process {member.rank} of {len(self.members)} ({member.host}, pid {member.pid}) stopped: "
            f"{self.stopped.reason}; the others end too, the same command goes on from the last checkpoint"
        )

    @property
    def speaks(self) -> bool:
        """Whether this is the one of the remaining processes that tells the user."""
        return self.stopped is not None and self.rank == (1 if self.stopped.rank == 0 else 0)

    def end(self, failure: str = "") -> None:
        """This process is about to end: the others learn that it does, and why if it failed."""
        self.ending.set()
        for peer in self.peers.values():
            _send(peer, {"failed": failure} if failure else {"left": True})

    def is_told_by_main(self, failure: str, seconds: float) -> bool:
        """Whether the main process says the same words: what is wrong for all is told once."""
        return self.rank != 0 and self.main_spoke.wait(seconds) and self.main_failure == failure

    # --- the listening thread -------------------------------------------------------------------------

    def _listen(self) -> None:
        """Each process sends one message, its last; the main one may send another's."""
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
        """A process has stopped: tell the others, and see to it that this one ends."""
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
        elif self.speaks:
            print(f"causalfusion: {self.message()}", file=sys.stderr, flush=True)
        self.leave(1)


def end_with_launcher() -> None:
    """When the torchrun that started this process is gone, or was before it could look, ask it to end as
    torchrun would have."""
    launcher = os.getppid()
    alive = _may_be_launcher(launcher)

    def look() -> None:
        while alive and os.getppid() == launcher:
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()


def _may_be_launcher(process: int) -> bool:
    """Whether this process can be a torchrun: it is Python. Where the launcher is gone, it is whatever adopts
    orphans: the first process of the system or the container, or a session's manager."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # another system, or somebody else's process
        return process != 1
    return b"python" in command or b"torch" in command


@contextmanager
def time_to_tell(watch: Watch) -> Iterator[None]:
    """torchrun sends SIGTERM to the others as soon as one process has ended: let them first say which."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _: Any) -> None:
        end = time.monotonic() + _LOOK
        while not watch.news.is_set() and time.monotonic() < end:  # not wait(): its lock may be taken here
            time.sleep(0.05)
        if not watch.news.is_set():
            signal.signal(number, before)
            os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        if not watch.news.is_set():  # else this process ends anyway
            signal.signal(signal.SIGTERM, before)


def open_watch() -> tuple[socket.socket, int, str]:
    """What the main process listens on: the socket, its port, and a token that the others have to know."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=1024)
    return server, server.getsockname()[1], secrets.token_hex(16)


def host_watch(server: socket.socket, token: str, members: list[Member]) -> Watch:
    """The main process's watch, once the others have joined; it goes on without those that cannot."""
    peers: dict[int, socket.socket] = {}
    server.settimeout(_CONNECT)
    with server, suppress(TimeoutError):
        while len(peers) < len(members) - 1:
            peer, _ = server.accept()
            peer.settimeout(_CONNECT)
            said = _receive(peer) or {}
            if said.get("token") == token:
                peers[said["rank"]] = _kept_alive(peer)
            else:
                peer.close()
    return Watch(0, members, peers).start()


def join_watch(rank: int, address: tuple[str, int], token: str, members: list[Member]) -> Watch:
    """Another process's watch. Where the main one cannot be reached, it knows nothing, and a line says so."""
    try:
        peer = _kept_alive(socket.create_connection(address, timeout=_CONNECT))
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
    """Have the system ask whether the other side still exists: a machine without power sends no farewell."""
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
    """One line; None where the connection ended."""
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
