"""The processes of a run: they connect, decide together, and end together.

Process 0 is the leader. Whatever depends on time or on a signal is decided by the leader at a point that all
processes reach, and broadcast (`Together.decide`): so all save, stop and evaluate at the same step. A thread
of each process watches the others. A process that dies, stops answering or makes no progress ends the run
with `LOST` in all processes within a known time, and is named. The same command then resumes the run.
"""

import contextlib
import faulthandler
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import jax

from dl.errors import UserError
from dl.system.channel import Message, Peer, open_channel, own_name
from dl.system.cluster import Cluster
from dl.training.signals import StopSignals

LOST = 75  # exit status after another process was lost: a temporary failure, as in sysexits.h
CONNECT_TIMEOUT = 120.0  # seconds
STALL_SECONDS = 120.0
STALL_FACTOR = 20  # times the longest time between two decisions so far

_HEARTBEAT = 1.0  # seconds between two messages
_GRACE = 3.0  # seconds in which other threads print their stacks, or a loss is noticed
_SHUTDOWN_TIMEOUT = 30  # seconds in which JAX's processes leave


class Together:
    """The decisions of all processes of a run.

    Attributes:
      is_first: whether this is process 0, the leader, which alone prints and writes.
      signals: the signals that this process received; set when a run starts.
      received: the signal that all processes agreed to stop for.
    """

    def __init__(self, cluster: Cluster, peers: list[Peer], stall_seconds: float):
        self.signals: StopSignals | None = None
        self.received: signal.Signals | None = None
        self._cluster = cluster
        self._peers = {peer.number: peer for peer in peers}
        self._stall_seconds = stall_seconds
        self.is_first = cluster.process_id == 0
        self._decisions: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._number = 0  # of decisions
        self._asked: int | None = None  # a signal that another process received
        self._is_told = False  # whether the leader knows the signal of this process
        self._left: dict[int, tuple[int, str, float]] = {}  # status, error and time of processes that end
        self._progress: dict[int, int] = {peer.number: 0 for peer in peers}  # decisions of each process
        self._watched_since: float | None = None
        self._longest = 0.0  # seconds between two decisions
        self._leaving = threading.Event()
        self._ending = threading.Lock()
        for peer in peers:
            peer.listen(self._receive)
        threading.Thread(target=self._watch, name="watch-processes", daemon=True).start()

    def decide(self, is_due: bool = False) -> bool:
        """Sets `received`, and returns whether something that depends on time is due, as the leader says.

        Every process must call this equally often. It waits only for a leader that is behind.
        """
        now = time.monotonic()
        if self._watched_since is not None:
            self._longest = max(self._longest, now - self._watched_since)
            self._watched_since = now
        self._number += 1
        own = None if self.signals is None else self.signals.received
        number = None if own is None else int(own)
        if self.is_first:
            number = number or self._asked
            self._send_all({"decision": self._number, "signal": number, "due": is_due})
        else:
            if number is not None and not self._is_told:
                self._send_all({"signal": number})
                self._is_told = True
            decision = self._decisions.get()
            if decision["decision"] != self._number:  # a defect: the processes do not run the same code
                raise RuntimeError(f"decision {self._number} of this process is {decision} of process 0")
            number, is_due = decision["signal"], bool(decision["due"])
        if number is not None:
            self.received = signal.Signals(number)
        return is_due

    def is_stopped(self) -> bool:
        """Decides, and returns whether the run stops for a signal."""
        self.decide()
        return self.received is not None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A context in which the time between two decisions is limited."""
        self._watched_since = time.monotonic()
        try:
            yield
        finally:
            self._watched_since = None

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """A part of `watched` that may take any time, such as saving to a slow disk."""
        before, self._watched_since = self._watched_since, None
        try:
            yield
        finally:
            self._watched_since = None if before is None else time.monotonic()

    def leave(self, status: int, error: str = "") -> None:
        """Tells the others that this process ends, and waits until all do.

        If another process does not end with the same status within a few seconds, all are ended.

        Args:
          status: exit status of this process.
          error: error message of this process, which is then printed by process 0.
        """
        number = self._cluster.process_id
        self._left[number] = (status, error, time.monotonic())
        self._send_all({"left": status, "error": error})
        while not self._leaving.wait(0.05):
            if self.is_first and len(self._left) == self._cluster.num_processes:
                self._send_all({"all left": True})
                self._leaving.set()
        jax.distributed.shutdown()

    def await_loss(self) -> None:
        """Waits a moment for the message that another process was lost, which explains an error here."""
        time.sleep(_GRACE)

    def _send_all(self, message: Message) -> None:
        for peer in self._peers.values():
            peer.send(message)

    def _receive(self, number: int, message: Message | None) -> None:
        if message is None:
            if number not in self._left and not self._leaving.is_set():
                self._end(f"{self._peers[number].name} has ended")
        elif "decision" in message:
            self._decisions.put(message)
        elif "signal" in message:
            self._asked = message["signal"]
        elif "beat" in message:
            self._progress[number] = int(message["beat"])
        elif "left" in message:
            self._left[number] = (int(message["left"]), str(message["error"]), time.monotonic())
        elif "all left" in message:
            self._leaving.set()
        elif "end" in message:
            self._end(str(message["end"]), is_told=True)
        elif "stalled" in message:
            self._report_stall()

    def _watch(self) -> None:
        while not self._leaving.wait(_HEARTBEAT):
            self._send_all({"beat": self._number})
            now = time.monotonic()
            for peer in self._peers.values():
                silence = now - peer.heard
                if silence > self._stall_seconds and peer.number not in self._left:
                    self._end(f"{peer.name} has not answered for {silence:.0f} s")
            if self.is_first:
                self._refuse_one_sided_failure(now)
            since = self._watched_since
            if since is not None and now - since > max(self._stall_seconds, STALL_FACTOR * self._longest):
                self._watched_since = None
                print_stacks(f"{own_name(self._cluster.process_id)} made no progress for {now - since:.0f} s")
                if self.is_first:
                    self._report_stall()
                else:
                    self._send_all({"stalled": self._number})

    def _refuse_one_sided_failure(self, now: float) -> None:
        """Ends the run if a process has failed and another one goes on."""
        if len(self._left) == self._cluster.num_processes:
            return
        for number, (status, error, since) in self._left.items():
            if status and now - since > _GRACE:
                reason = f": {error.removeprefix('error: ')}" if error else f" with status {status}"
                self._end(f"{self._name(number)} has failed{reason}")

    def _name(self, number: int) -> str:
        own = self._cluster.process_id
        return own_name(own) if number == own else self._peers[number].name

    def _report_stall(self) -> None:
        """Ends the run after a stall, of which the leader knows where every process is."""
        time.sleep(_GRACE)  # in which the others print their stacks
        reached = {0: self._number, **self._progress}
        behind = [self._name(number) for number, count in reached.items() if count == min(reached.values())]
        which = "all processes" if len(behind) == len(reached) else " and ".join(behind)
        self._end(f"no progress for {self._stall_seconds:.0f} s or more; behind: {which}")

    def _end(self, why: str, is_told: bool = False) -> NoReturn:
        """Ends this process and all others. Their main threads may wait for each other for ever."""
        with self._ending:
            if not is_told:
                self._send_all({"end": why})
            status, *_ = self._left.get(self._cluster.process_id, (LOST,))
            if (self.is_first or not is_told) and status in (0, LOST):
                print(f"error: {why}; the same command resumes the run", file=sys.stderr)
            _exit_at_once(status or LOST)


class Alone:
    """The decisions of a single process: the counterpart of `Together`, which documents the methods."""

    is_first = True

    def __init__(self) -> None:
        self.signals: StopSignals | None = None

    @property
    def received(self) -> signal.Signals | None:
        return None if self.signals is None else self.signals.received

    def decide(self, is_due: bool = False) -> bool:
        return is_due

    def is_stopped(self) -> bool:
        return self.received is not None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        yield

    def leave(self, status: int, error: str = "") -> None: ...

    def await_loss(self) -> None: ...


_joined: Together | None = None


def join(cluster: Cluster | None, stall_seconds: float = STALL_SECONDS) -> None:
    """Connects this process with the others of a run. It must be called before JAX looks for devices.

    Args:
      cluster: the place of this process; `None` for a single process.
      stall_seconds: number of seconds without an answer or without progress after which a process counts as
        lost.

    Raises:
      UserError: the processes do not find each other, or JAX was used before.
    """
    global _joined
    if cluster is None or _joined is not None:
        return
    peers, port = open_channel(cluster, CONNECT_TIMEOUT)
    # Its handler of SIGTERM would replace that of `dl.training.signals`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            f"{cluster.host}:{port}",
            cluster.num_processes,
            cluster.process_id,
            cluster.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=int(CONNECT_TIMEOUT),
            # Longer than the watch, which names the process. JAX ends a process without an explanation.
            heartbeat_timeout_seconds=int(2 * stall_seconds) + 60,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{own_name(cluster.process_id)} cannot join the others ({reason})") from None
    _joined = Together(cluster, peers, stall_seconds)


def current() -> "Together | Alone":
    """Returns the decisions of the processes that this one has joined."""
    return Alone() if _joined is None else _joined


def print_stacks(why: str) -> None:
    """Prints why, and where each thread of this process is."""
    print(f"{why}; its threads are here:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)


def _exit_at_once(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
