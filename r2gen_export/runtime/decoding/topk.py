"""The k largest values, ties broken as torch breaks them on the CPU.

Beam search keeps the top candidates of all beams. Where scores tie, which one transformers keeps depends on the
algorithm behind `torch.topk` (ATen `native/TopKImpl.h`): libstdc++'s `partial_sort`, or `nth_element` and `sort` when k
is large (`bits/stl_algo.h`, `bits/stl_heap.h`). Both are followed here, with their steps over many values in numpy.
"""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

SORT_THRESHOLD: Final = 16
"""libstdc++: `std::sort` leaves ranges of this size to the final insertion sort."""


def topk(values: Floats, k: int) -> Integers:
    """Indices [k] of the k largest values, largest first, as `torch.topk(values, k)[1]` gives them.

    Args:
        values: [n] float32, without NaN.
        k: 1 to n.
    """
    if k * 64 <= len(values):
        return _partial_sort(values, k)
    order = np.arange(len(values))
    _nth_element(values, order, k - 1)
    _introsort(values, order, 0, k - 1, _depth(k - 1))
    _insertion_sort(values, order, 0, k - 1)
    return order[:k]


class _Entry(float):
    """A value in a heap, and its place in the array. Entries of one value are equal, as they are in C++."""

    __slots__ = ("place",)
    place: int


def _entry(value: float, place: int) -> _Entry:
    entry = _Entry(value)
    entry.place = place
    return entry


def _partial_sort(values: Floats, k: int) -> Integers:
    """`std::partial_sort`: indices of the k largest."""
    heap = _heap_select(values, k)
    ascending = [heappop(heap).place for _ in range(k)]
    return np.array(ascending[::-1], dtype=np.int64)


def _heap_select(values: Floats, k: int) -> list[_Entry]:
    """`__heap_select`: the k largest values as a heap, the least on top.

    `heapq` moves entries as libstdc++ does: down to a leaf, the right child when children are equal, then up again. A
    value enters when it is above the top. The top only rises, so that a block needs to be searched once for values
    above the top of that moment, and only those take a step. Blocks grow, as entering gets rare. Where many enter,
    small blocks keep the search linear: of an ascending array, as no decoder gives it, every value takes its step.
    """
    heap = list(map(_entry, values[:k].tolist(), range(k)))
    heapify(heap)
    batch = 8 * k
    start = size = k
    while start < len(values):
        top = float(heap[0])  # numpy compares with a subclass of float in double precision, which takes longer
        above = start + np.flatnonzero(values[start : start + size] > top)
        places = above[:batch]
        for value, place in zip(values[places].tolist(), places.tolist(), strict=True):
            if value > heap[0]:
                heapreplace(heap, _entry(value, place))
        if len(above) > batch:
            start, size = int(above[batch]), batch
        else:
            start, size = start + size, 4 * size
    return heap


def _nth_element(values: Floats, order: Integers, nth: int) -> None:
    """`__introselect` over the whole of `order`, indices of `values`."""
    first, last = 0, len(order)
    depth = _depth(last)
    while last - first > 3:
        if depth == 0:
            part = order[first:last]
            heap = _heap_select(values[part], nth + 1 - first)
            order[first : nth + 1] = part[[entry.place for entry in heap]]
            order[[first, nth]] = order[[nth, first]]
            return
        depth -= 1
        cut = _partition_around_median(values, order, first, last)
        if cut <= nth:
            first = cut
        else:
            last = cut
    _insertion_sort(values, order, first, last)


def _introsort(values: Floats, order: Integers, first: int, last: int, depth: int) -> None:
    """`__introsort_loop`: sorts but for ranges of `SORT_THRESHOLD`."""
    while last - first > SORT_THRESHOLD:
        if depth == 0:
            part = order[first:last]
            order[first:last] = part[_partial_sort(values[part], len(part))]
            return
        depth -= 1
        cut = _partition_around_median(values, order, first, last)
        _introsort(values, order, cut, last, depth)
        last = cut


def _depth(size: int) -> int:
    """How many partitions of a range may follow each other before libstdc++ takes a heap instead."""
    return 2 * (size.bit_length() - 1)


def _partition_around_median(values: Floats, order: Integers, first: int, last: int) -> int:
    """`__unguarded_partition_pivot`: the median of three is the pivot and stays at `first`; returns the cut."""
    a, b, c = first + 1, first + (last - first) // 2, last - 1
    value_a, value_b, value_c = values[order[a]], values[order[b]], values[order[c]]
    if not value_a > value_b:
        a, b, value_a, value_b = b, a, value_b, value_a
    # libstdc++'s comparisons, in its order: they decide which of equal values is the pivot.
    median = b if value_b > value_c else c if value_a > value_c else a
    order[first], order[median] = order[median], order[first]
    pivot = values[order[first]]
    ordered = order[first + 1 : last]
    rest = values[ordered]
    # One pointer comes from each end and stops where a value is not on its side of the pivot; the two are swapped.
    lefts = np.flatnonzero(rest <= pivot)
    rights = np.flatnonzero(rest >= pivot)[::-1]
    pairs = min(len(lefts), len(rights))
    swaps = np.count_nonzero(lefts[:pairs] < rights[:pairs])  # they come nearer until they have met
    left, right = lefts[:swaps], rights[:swaps]
    ordered[left], ordered[right] = ordered[right], ordered[left]
    # The left pointer goes on to the next stop; what was swapped to the right is one too.
    return first + 1 + int(min([*lefts[swaps : swaps + 1], *right[-1:]]))


def _insertion_sort(values: Floats, order: Integers, first: int, last: int) -> None:
    """Stable, and so it gives what libstdc++'s guarded and unguarded insertions give."""
    part = order[first:last]
    order[first:last] = part[np.argsort(-values[part], kind="stable")]
