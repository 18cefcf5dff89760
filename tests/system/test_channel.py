"""The connections between processes, with a thread in place of each process."""

import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dl.errors import UserError
from dl.system.channel import open_channel
from dl.system.cluster import Cluster


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def open_all(places, timeout=10.0):
    with ThreadPoolExecutor(len(places)) as pool:
        futures = [pool.submit(open_channel, place, timeout) for place in places]
        return [future.exception() or future.result() for future in futures]


def places(port, numbers, count=3):
    return [Cluster("127.0.0.1", port, count, number) for number in numbers]


def test_messages_reach_the_leader_and_the_others(port):
    leader, *others = open_all(places(port, [0, 2, 1]))
    assert len({free for _, free in (leader, *others)}) == 1  # all know the port for JAX
    assert sorted(peer.number for peer in leader[0]) == [1, 2]
    heard = queue.Queue()
    for peer in leader[0]:
        peer.listen(lambda number, message: heard.put((number, message)))
    for peers, _ in others:
        assert [peer.number for peer in peers] == [0]
        peers[0].listen(lambda number, message: heard.put((number, message)))
    leader[0][0].send({"decision": 1})
    assert heard.get(timeout=10) == (0, {"decision": 1})
    others[0][0][0].send({"beat": 7})
    assert heard.get(timeout=10) == (2, {"beat": 7})
    others[1][0][0].close()  # as the death of process 1 does
    ended = {heard.get(timeout=10)[0] for _ in range(2)}
    assert ended == {0, 1}  # both ends notice it
    for peers, _ in (leader, *others):
        for peer in peers:
            peer.close()


def test_a_missing_process_is_named_on_both_sides(port):
    (trouble,) = open_all(places(port, [0]), timeout=0.5)
    assert isinstance(trouble, UserError)
    assert "waited 0.5 s" in str(trouble)
    assert "process 1, 2 of 3 did not connect" in str(trouble)
    (trouble,) = open_all(places(port, [1]), timeout=0.5)
    assert "process 1 waited 0.5 s for process 0" in str(trouble)
    assert "Connection refused" in str(trouble)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Cluster("127.0.0.1", 0, 5, 1), "num_processes=5"),
        (Cluster("127.0.0.1", 0, 3, 2), "give each process its own number"),
    ],
)
def test_a_process_that_contradicts_the_first_is_named_on_both_sides(wrong, said, port):
    all_places = [*places(port, [0, 2]), Cluster(wrong.host, port, wrong.num_processes, wrong.process_id)]
    leader, _, contradicting = open_all(all_places, timeout=2)
    for found in (leader, contradicting):
        assert isinstance(found, UserError)
        assert said in str(found)


def test_a_port_that_is_in_use_is_one_line(port):
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True):
        (trouble,) = open_all(places(port, [0]), timeout=1)
    assert "cannot listen" in str(trouble)


def test_a_stranger_at_the_port_does_not_belong_to_the_run(port):
    found = []
    leader = threading.Thread(target=lambda: found.append(open_channel(places(port, [0], 2)[0], 10)))
    leader.start()
    for content in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"process": "x"}\n', b""):
        with connect(port) as stranger:
            stranger.sendall(content)
    ((own, _),) = open_all(places(port, [1], 2))
    leader.join(timeout=10)
    assert [peer.number for peer in found[0][0]] == [1]
    for peer in (*own, *found[0][0]):
        peer.close()


def connect(port):
    """Returns a connection to the leader, which may not listen yet."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except ConnectionRefusedError:
            continue
