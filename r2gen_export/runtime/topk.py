"""The k largest values, ties broken as torch breaks them on the CPU.

Beam search keeps the top candidates of all beams. Where scores tie, which one transformers keeps depends on the
partial sort behind `torch.topk` (ATen `native/TopKImpl.h`: libstdc++'s `partial_sort`, or `nth_element` and `sort` when
k is large). Ties are rare, so they alone take the slow way, which follows libstdc++ step by step.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Entry = tuple[float, int]

SORT_THRESHOLD: Final = 16
"""libstdc++: `std::sort` leaves ranges of this size to the final insertion sort."""


def topk(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices [k] of the k largest values, largest first, as `torch.topk(values, k)[1]` gives them.

    Args:
        values: [n] float32, without NaN.
        k: 1 to n.
    """
    limit = np.partition(values, -k)[-k]
    found = np.flatnonzero(values >= limit)
    best = found[np.argsort(-values[found], kind="stable")]
    kept = values[best]
    if len(best) == k and (kept[:-1] > kept[1:]).all():
        return best
    return _topk_with_ties(values, k)


def _topk_with_ties(values: NDArray[Any], k: int) -> NDArray[np.int64]:
    queue: list[Entry] = list(zip(values.tolist(), range(len(values)), strict=True))
    if k * 64 <= len(queue):
        _heap_select(queue, 0, k, len(queue))
        _sort_heap(queue, 0, k)
    else:
        _nth_element(queue, k - 1)
        _sort(queue, k - 1)
    return np.array([index for _, index in queue[:k]], dtype=np.int64)


def _before(one: Entry, two: Entry) -> bool:
    return one[0] > two[0]


def _heap_select(queue: list[Entry], first: int, middle: int, last: int) -> None:
    """`__heap_select`: the best of [first, last) become a heap in [first, middle), worst on top."""
    length = middle - first
    for parent in range((length - 2) // 2, -1, -1):
        _adjust_heap(queue, first, parent, length, queue[first + parent])
    for position in range(middle, last):
        if queue[position][0] > queue[first][0]:
            value, queue[position] = queue[position], queue[first]
            _adjust_heap(queue, first, 0, length, value)


def _sort_heap(queue: list[Entry], first: int, last: int) -> None:
    for end in range(last - 1, first, -1):
        value, queue[end] = queue[end], queue[first]
        _adjust_heap(queue, first, 0, end - first, value)


def _adjust_heap(queue: list[Entry], first: int, hole: int, length: int, value: Entry) -> None:
    top = hole
    child = hole
    while child < (length - 1) // 2:
        child = 2 * (child + 1)
        if _before(queue[first + child], queue[first + child - 1]):
            child -= 1
        queue[first + hole] = queue[first + child]
        hole = child
    if length % 2 == 0 and child == (length - 2) // 2:
        child = 2 * (child + 1)
        queue[first + hole] = queue[first + child - 1]
        hole = child - 1
    parent = (hole - 1) // 2
    while hole > top and _before(queue[first + parent], value):
        queue[first + hole] = queue[first + parent]
        hole = parent
        parent = (hole - 1) // 2
    queue[first + hole] = value


def _nth_element(queue: list[Entry], nth: int) -> None:
    """`__introselect` over the whole queue."""
    first, last = 0, len(queue)
    depth = 2 * (len(queue).bit_length() - 1)
    while last - first > 3:
        if depth == 0:
            _heap_select(queue, first, nth + 1, last)
            queue[first], queue[nth] = queue[nth], queue[first]
            return
        depth -= 1
        cut = _partition_around_median(queue, first, last)
        if cut <= nth:
            first = cut
        else:
            last = cut
    _insertion_sort(queue, first, last)


def _sort(queue: list[Entry], last: int) -> None:
    """`std::sort` of [0, last)."""
    if last > 0:
        _introsort(queue, 0, last, 2 * (last.bit_length() - 1))
        _insertion_sort(queue, 0, last)


def _introsort(queue: list[Entry], first: int, last: int, depth: int) -> None:
    while last - first > SORT_THRESHOLD:
        if depth == 0:
            _heap_select(queue, first, last, last)
            _sort_heap(queue, first, last)
            return
        depth -= 1
        cut = _partition_around_median(queue, first, last)
        _introsort(queue, cut, last, depth)
        last = cut


def _partition_around_median(queue: list[Entry], first: int, last: int) -> int:
    """`__unguarded_partition_pivot`: the median of three is the pivot and stays at `first`."""
    a, b, c = first + 1, first + (last - first) // 2, last - 1
    if _before(queue[a], queue[b]):
        low, high = a, b
    else:
        low, high = b, a
    # libstdc++'s comparisons, in its order: `median` is the one that is neither first nor last of the three.
    if _before(queue[high], queue[c]):
        median = high
    elif _before(queue[low], queue[c]):
        median = c
    else:
        median = low
    queue[first], queue[median] = queue[median], queue[first]
    pivot = queue[first]
    left, right = first + 1, last
    while True:
        while _before(queue[left], pivot):
            left += 1
        right -= 1
        while _before(pivot, queue[right]):
            right -= 1
        if left >= right:
            return left
        queue[left], queue[right] = queue[right], queue[left]
        left += 1


def _insertion_sort(queue: list[Entry], first: int, last: int) -> None:
    """Stable, and so it gives what libstdc++'s guarded and unguarded insertions give."""
    queue[first:last] = sorted(queue[first:last], key=lambda entry: -entry[0])
