"""Counter-based random numbers: a pure function of (seed, stream, epoch, index).

Every backend computes the same permutations from these definitions, in any order and on any number
of threads. The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
SHUFFLE_STREAM = 0
"""Value of the last counter word when rows are shuffled."""
DROPOUT_STREAM = 1
"""Value of the last counter word for the dropout of the first layer; the others count on from it."""
BALANCE_STREAM = 0xFFFFFFFE
"""Value of the last counter word when rows are drawn class by class."""
WINDOW_STREAM = 0xFFFFFFFF
"""Value of the last counter word for the seeds of the windows of an epoch."""

_LOW = 0xFFFFFFFF


def philox(counter: tuple[ArrayLike, ...], key: tuple[int, int]) -> tuple[NDArray[np.uint32], ...]:
    """Four random 32-bit words for every counter.

    A round multiplies two counter words by constants and mixes the high halves of the products with
    the other two words and the key; the key is incremented between the ten rounds.

    Parameters
    ----------
    counter
        Four 32-bit words, integers or arrays of them that broadcast against each other.
    key
        Two 32-bit words.

    Returns
    -------
    tuple of numpy.ndarray
        Four arrays of uint32 in the broadcast shape of the counter.

    References
    ----------
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in np.broadcast_arrays(*counter))
    k0, k1 = key
    low, half = np.uint64(_LOW), np.uint64(32)
    for _ in range(ROUNDS):
        p0 = c0 * np.uint64(MULTIPLIERS[0])
        p1 = c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (p1 >> half) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> half) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0 = (k0 + KEY_INCREMENTS[0]) & _LOW
        k1 = (k1 + KEY_INCREMENTS[1]) & _LOW
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def sort_keys(n: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    """One random 64-bit key per row, by which `permutation` sorts.

    Rows 2p and 2p + 1 share the Philox block with counter (p low, p high, epoch, stream) and key
    (seed low, seed high): the even row takes its first two words, the odd row its last two, low
    word first.

    Parameters
    ----------
    n
        Number of rows.
    seed
        Any integer of 64 bits; only its lowest 64 bits count.
    epoch
        Number of the epoch; only its lowest 32 bits count.

    Returns
    -------
    numpy.ndarray
        uint64, (n,).
    """
    pair = np.arange((n + 1) // 2, dtype=np.uint64)
    words = philox(
        (pair & np.uint64(_LOW), pair >> np.uint64(32), epoch & _LOW, SHUFFLE_STREAM),
        (seed & _LOW, (seed >> 32) & _LOW),
    )
    r0, r1, r2, r3 = (word.astype(np.uint64) for word in words)
    half = np.uint64(32)
    return np.stack([r0 | r1 << half, r2 | r3 << half], axis=1).reshape(-1)[:n]


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Order in which an epoch visits its rows: the stable argsort of `sort_keys`.

    Parameters
    ----------
    n
        Number of rows.
    seed
        Seed of the run, 64 bits.
    epoch
        Number of the epoch, counted from the network's first.

    Returns
    -------
    numpy.ndarray
        A permutation of 0 .. n - 1, int64, (n,).
    """
    return np.argsort(sort_keys(n, seed, epoch), kind="stable").astype(np.int64, copy=False)


def window_seed(seed: int, epoch: int, window: int) -> int:
    """Seed of the shuffle within one window of an epoch that is too large to be shuffled at once.

    The first two words of the Philox block with counter (window low, window high, epoch, stream), low word
    first.

    Parameters
    ----------
    seed
        Seed of the run, 64 bits.
    epoch
        Number of the epoch, counted from the network's first; only its lowest 32 bits count.
    window
        Number of the window in its epoch, from 0; -1 for the order in which the epoch reads its chunks.

    Returns
    -------
    int
        64 bits.
    """
    counter = (window & _LOW, (window >> 32) & _LOW, epoch & _LOW, WINDOW_STREAM)
    words = philox(counter, (seed & _LOW, (seed >> 32) & _LOW))
    return int(words[0]) | int(words[1]) << 32


def balanced_order(labels: NDArray[np.integer], seed: int, epoch: int) -> NDArray[np.int64]:
    """Rows of an epoch, drawn with replacement so that every class that has rows is equally likely.

    Draws 2p and 2p + 1 share the Philox block with counter (p low, p high, epoch, stream) and key (seed low,
    seed high). The first word of a draw chooses one of K classes, ``word K / 2^32`` rounded down, and the
    second in the same way one of its rows, which favours no row by more than n / 2^32 of its share.

    Parameters
    ----------
    labels
        Class of every row, not negative, (n,) with n < 2^32.
    seed
        Seed of the run, 64 bits.
    epoch
        Number of the epoch, counted from the network's first.

    Returns
    -------
    numpy.ndarray
        Numbers of rows, int64, (n,).
    """
    n = len(labels)
    pair = np.arange((n + 1) // 2, dtype=np.uint64)
    words = philox(
        (pair & np.uint64(_LOW), pair >> np.uint64(32), epoch & _LOW, BALANCE_STREAM),
        (seed & _LOW, (seed >> 32) & _LOW),
    )
    draws = np.stack(words, axis=1).reshape(-1, 2)[:n].astype(np.uint64)
    by_class = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = (np.cumsum(sizes) - sizes)[sizes > 0]
    sizes = sizes[sizes > 0].astype(np.uint64)
    half = np.uint64(32)
    chosen = draws[:, 0] * np.uint64(len(sizes)) >> half
    within = draws[:, 1] * sizes[chosen] >> half
    order: NDArray[np.int64] = by_class[starts[chosen] + within.astype(np.int64)].astype(np.int64, copy=False)
    return order


def dropout_threshold(rate: float) -> int:
    """Words below this drop their unit."""
    return int(rate * 2**32)


def dropout_mask(rate: float, seed: int, step: int, layer: int, rows: int, units: int) -> NDArray[np.bool_]:
    """Which outputs of a layer one update keeps.

    Rows 4g to 4g + 3 of a batch share the Philox block with counter (unit, g, step, stream) and key
    (seed low, seed high): row 4g + w takes word w. A unit is dropped where its word is below rate 2^32.

    Parameters
    ----------
    rate
        Share of the outputs that are dropped, in [0, 1).
    seed
        Seed of the network, 64 bits.
    step
        Number of updates before this one; only its lowest 32 bits count.
    layer
        Number of the layer.
    rows, units
        Rows of the batch and outputs of the layer.

    Returns
    -------
    numpy.ndarray
        bool, (rows, units).
    """
    groups = np.arange((rows + 3) // 4, dtype=np.uint64)[:, None]
    words = philox(
        (np.arange(units, dtype=np.uint64)[None, :], groups, step & _LOW, DROPOUT_STREAM + layer),
        (seed & _LOW, (seed >> 32) & _LOW),
    )
    mask: NDArray[np.bool_] = np.stack(words, axis=1) >= np.uint32(dropout_threshold(rate))
    return mask.reshape(-1, units)[:rows]
