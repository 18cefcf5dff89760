"""The orders of epochs that are kept: always the same orders, in bounded memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dl.data.epoch_orders import EpochOrders
from dl.data.permutation import random_order

SIZE = 1_000
BYTES = SIZE * 4


def test_only_the_last_two_epochs_of_a_seed_are_kept():
    orders = EpochOrders(max_bytes=64 * BYTES)
    for epoch in range(20):
        np.testing.assert_array_equal(orders.order(SIZE, 3, epoch), random_order(SIZE, 3, epoch))
        assert orders.nbytes <= 2 * BYTES
    assert orders.order(SIZE, 3, 18) is orders.order(SIZE, 3, 18)  # kept, and shared
    assert not orders.order(SIZE, 3, 18).flags.writeable


def test_many_seeds_stay_within_the_limit_and_orders_never_change():
    orders = EpochOrders(max_bytes=5 * BYTES)
    for epoch in range(3):
        for seed in (None, *range(10)):
            expected = np.arange(SIZE) if seed is None else random_order(SIZE, seed, epoch)
            np.testing.assert_array_equal(orders.order(SIZE, seed, epoch), expected)
            assert orders.nbytes <= 5 * BYTES


def test_two_orders_are_kept_even_if_they_are_too_large():
    orders = EpochOrders(max_bytes=0)
    before = orders.order(SIZE, 0, 1)
    assert orders.order(SIZE, 0, 2) is not before
    assert orders.order(SIZE, 0, 1) is before  # a batch of the epoch before does not compute it again


def test_threads_share_an_order():
    orders = EpochOrders(max_bytes=64 * BYTES)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda step: orders.order(SIZE, 0, step % 2), range(200)))
    assert len({id(order) for order in found}) == 2
