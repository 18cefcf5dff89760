"""Messages between the processes of a run: JSON objects, one a line, over TCP.

Process 0 is the leader: it accepts one connection from each other process. The channel exists before JAX
connects the processes, and beside it, so a process that is missing, has died or has stopped is named. JAX
itself ends all processes without saying which one is at fault.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from dl.errors import UserError
from dl.system.cluster import Cluster

Message = dict[str, Any]
Receive = Callable[[int, Message | None], None]
"""Called with the number of a process and its message, or `None` when its connection has ended."""

_MAX_LINE = 2**16  # bytes of a message
_RETRY = 0.2  # seconds


class Peer:
    """Another process.

    Attributes:
      number: number of the process.
      name: text about the process: its number, host and process id of the operating system.
      heard: time of its last message, as `time.monotonic` tells it.
    """

    def __init__(self, number: int, name: str, connection: socket.socket, reader: Iterator[Message]):
        self.number, self.name = number, name
        self.heard = time.monotonic()
        self._connection, self._reader = connection, reader
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Sends a message. A connection that has ended is noticed by its reader."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(_encoded(message))

    def listen(self, receive: Receive) -> None:
        """Passes on the messages of the process in another thread."""

        def read() -> None:
            with contextlib.suppress(OSError, ValueError):
                for message in self._reader:
                    self.heard = time.monotonic()
                    receive(self.number, message)
            receive(self.number, None)

        threading.Thread(target=read, name=f"process-{self.number}", daemon=True).start()

    def close(self) -> None:
        _close(self._connection)


def own_name(number: int) -> str:
    """Returns text about this process."""
    return f"process {number} ({socket.gethostname()}, pid {os.getpid()})"


def open_channel(cluster: Cluster, timeout: float) -> tuple[list[Peer], int]:
    """Connects this process with process 0; process 0 waits for all others.

    Args:
      cluster: the place of this process.
      timeout: number of seconds to wait for the others.

    Returns:
      The processes that this one is connected with, and a free port of the host of process 0 for JAX.

    Raises:
      UserError: a process is missing after that time, or the processes contradict each other.
    """
    deadline = time.monotonic() + timeout
    if cluster.process_id:
        return _find_leader(cluster, deadline, timeout)
    return _gather(cluster, deadline, timeout)


def _gather(cluster: Cluster, deadline: float, timeout: float) -> tuple[list[Peer], int]:
    peers: dict[int, Peer] = {}
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        server = socket.create_server(
            ("", cluster.port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
        )
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {cluster.port} ({error.strerror}); choose a port that is free "
            "on its host"
        ) from None
    with server:
        try:
            while len(peers) < cluster.num_processes - 1:
                peer = _accept(server, cluster, peers, deadline, timeout)
                if peer is not None:
                    peers[peer.number] = peer
        except UserError:
            for peer in peers.values():
                peer.close()
            raise
        with socket.socket(family) as free:  # for JAX's own service
            free.bind(("", 0))
            port = free.getsockname()[1]
    for peer in peers.values():
        peer.send({"welcome": own_name(0), "port": port})
    return list(peers.values()), port


def _accept(
    server: socket.socket, cluster: Cluster, peers: dict[int, Peer], deadline: float, timeout: float
) -> Peer | None:
    """Returns the next process that connects; `None` if it does not belong to the run."""
    server.settimeout(max(deadline - time.monotonic(), 0.01))
    try:
        connection, _ = server.accept()
    except TimeoutError:
        missing = ", ".join(str(k) for k in range(1, cluster.num_processes) if k not in peers)
        raise UserError(
            f"process 0 waited {timeout:g} s at {cluster.address}, but process {missing} of "
            f"{cluster.num_processes} did not connect; start all processes with the same coordinator"
        ) from None
    return _welcome(connection, cluster, peers)


def _welcome(connection: socket.socket, cluster: Cluster, peers: dict[int, Peer]) -> Peer | None:
    """Returns the process behind a connection; `None` if it does not belong to the run."""
    connection.settimeout(10)
    reader = _messages(connection)
    try:
        hello = next(reader)
        number, count, name = int(hello["process"]), int(hello["of"]), str(hello["name"])
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        _close(connection)
        return None
    trouble = ""
    if count != cluster.num_processes:
        trouble = f"{name} was started with num_processes={count}, and process 0 with {cluster.num_processes}"
    elif not 0 < number < count or number in peers:
        first = f", as {peers[number].name}" if number in peers else ""
        trouble = f"{name} was started with process_id={number}{first}; give each process its own number"
    if trouble:
        for told in (connection, *(peer._connection for peer in peers.values())):
            with contextlib.suppress(OSError):
                told.sendall(_encoded({"refused": trouble}))
        _close(connection)
        raise UserError(trouble)
    connection.settimeout(None)
    return Peer(number, name, connection, reader)


def _find_leader(cluster: Cluster, deadline: float, timeout: float) -> tuple[list[Peer], int]:
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        connection: socket.socket | None = None
        try:
            connection = socket.create_connection((cluster.host, cluster.port), timeout=min(left, 10))
            hello = {"process": cluster.process_id, "of": cluster.num_processes}
            connection.sendall(_encoded({**hello, "name": own_name(cluster.process_id)}))
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            reader = _messages(connection)
            welcome = next(reader)
        except (OSError, ValueError, StopIteration) as error:
            reason = getattr(error, "strerror", None) or str(error) or reason
            if connection is not None:
                _close(connection)
            time.sleep(_RETRY)
            continue
        if "refused" in welcome:
            _close(connection)
            raise UserError(str(welcome["refused"]))
        connection.settimeout(None)
        return [Peer(0, str(welcome["welcome"]), connection, reader)], int(welcome["port"])
    raise UserError(
        f"process {cluster.process_id} waited {timeout:g} s for process 0 at {cluster.address} ({reason}); "
        "start all processes with the same coordinator, and check that its port can be reached"
    )


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # which also ends a thread that reads it
    connection.close()


def _encoded(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _messages(connection: socket.socket) -> Iterator[Message]:
    """Yields the messages of a connection until it ends.

    Raises:
      OSError: nothing came in time, or the connection was lost.
      ValueError: a line is not a message.
    """
    with connection.makefile("rb") as lines:
        while line := lines.readline(_MAX_LINE):
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError("a message is not an object")
            yield message
