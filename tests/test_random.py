import numpy as np
import pytest

import oracles
from gradstep.random import permutation, philox, sort_keys

# Known answers published with Random123 (kat_vectors, philox4x32 10).
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(counter, key, words):
    assert tuple(int(word) for word in philox(counter, key)) == words
    assert tuple(oracles.philox(counter, key)) == words


def test_philox_works_elementwise_on_arrays():
    counters = np.arange(5, dtype=np.uint64)
    together = np.array(philox((counters, 1, 2, 3), (4, 5)))
    apart = np.array([philox((int(c), 1, 2, 3), (4, 5)) for c in counters]).T
    np.testing.assert_array_equal(together, apart)
    assert together.dtype == np.uint32


@pytest.mark.parametrize(
    ("seed", "epoch"), [(0, 0), (1, 0), (0, 1), (2**64 - 1, 12345), (1 << 32, 2**32 - 1)]
)
def test_sort_keys_follow_the_definition(seed, epoch):
    keys = sort_keys(9, seed, epoch)
    assert keys.dtype == np.uint64
    assert [int(key) for key in keys] == [oracles.row_key(row, seed, epoch) for row in range(9)]


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000, 1001])
def test_permutation_visits_every_row_once(n):
    order = permutation(n, seed=3, epoch=4)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_permutation_is_pinned_for_ever():
    assert permutation(10, seed=0, epoch=0).tolist() == [3, 5, 4, 2, 6, 7, 1, 8, 0, 9]
    assert permutation(10, seed=2**63 + 5, epoch=3).tolist() == [8, 0, 6, 1, 9, 7, 5, 3, 4, 2]


def test_permutation_sorts_rows_by_their_keys():
    keys = sort_keys(101, seed=11, epoch=2)
    assert np.all(np.diff(keys[permutation(101, seed=11, epoch=2)].astype(object)) > 0)


def test_permutation_changes_with_seed_and_epoch():
    orders = [permutation(50, seed, epoch).tolist() for seed in (0, 1, 1 << 32) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_rows_keep_their_keys_when_rows_are_added():
    np.testing.assert_array_equal(sort_keys(1000, 5, 6)[:333], sort_keys(333, 5, 6))


def test_permutation_puts_every_row_everywhere_equally_often():
    n, epochs = 6, 6000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), permutation(n, seed=99, epoch=epoch)] += 1
    chi_square = np.sum((counts - epochs / n) ** 2) / (epochs / n)
    assert chi_square < 60  # 25 degrees of freedom: exceeded with probability 1e-4
