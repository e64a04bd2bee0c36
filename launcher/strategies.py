"""How many ranks each node gets, in numbers alone: pure.

Nodes are indices into `rooms`, how many ranks each can take. Each function gives the number of
ranks of every node, or None if not all fit. Ties go to the earlier node.
"""

import bisect
import heapq
from collections.abc import Sequence


def fill(num_ranks: int, rooms: Sequence[int], *, head_first: bool = False) -> list[int] | None:
    """As few nodes as possible, and the last one as full as possible.

    Args:
        num_ranks: To place.
        rooms: Of each node.
        head_first: Node 0 is filled before the others are looked at.
    """
    if sum(rooms) < num_ranks:
        return None
    counts = [0] * len(rooms)
    left = num_ranks
    if head_first:
        counts[0] = min(left, rooms[0])
        left -= counts[0]
    order = sorted(range(head_first, len(rooms)), key=lambda node: -rooms[node])
    for position, node in enumerate(order):
        if left == 0:
            break
        if rooms[node] >= left:  # the tightest of those that take all that is left
            node = min(
                (other for other in order[position:] if rooms[other] >= left),
                key=rooms.__getitem__,
            )
        counts[node] = min(left, rooms[node])
        left -= counts[node]
    return counts


def strict(
    num_ranks: int, rooms: Sequence[int], *, each: int | None = None, head_first: bool = False
) -> list[int] | None:
    """The same number on every node used: `each`, or the largest that divides `num_ranks`.

    Of the nodes that can take so many the tightest are used, node 0 before them with `head_first`.
    """
    if num_ranks == 0:
        return [0] * len(rooms)
    ascending = sorted(rooms)
    most = min(num_ranks, ascending[-1] if ascending else 0)
    for number in range(most, 0, -1) if each is None else (each,):
        able = len(rooms) - bisect.bisect_left(ascending, number)
        if number and num_ranks % number == 0 and num_ranks // number <= able:
            break
    else:
        return None
    order = [node for node in range(len(rooms)) if rooms[node] >= number]
    order.sort(key=lambda node: (not (head_first and node == 0), rooms[node]))
    counts = [0] * len(rooms)
    for node in order[: num_ranks // number]:
        counts[node] = number
    return counts


def spread(num_ranks: int, rooms: Sequence[int]) -> list[int] | None:
    """As even as the rooms allow: no node has two ranks more than one that could take another."""
    if sum(rooms) < num_ranks:
        return None
    # The level to which every node is filled that has the room.
    level = bisect.bisect_right(
        range(num_ranks + 1), num_ranks, key=lambda level: sum(min(room, level) for room in rooms)
    )
    level -= 1
    counts = [min(room, level) for room in rooms]
    above = sorted(
        (node for node in range(len(rooms)) if rooms[node] > level), key=lambda node: -rooms[node]
    )
    for node in above[: num_ranks - sum(counts)]:
        counts[node] += 1
    return counts


def span(
    num_ranks: int, num_workers: int, slots: Sequence[int], *, head_first: bool = False
) -> list[tuple[int, ...]] | None:
    """The node of each worker of each rank; ranks stay on one node as far as they can.

    Args:
        num_ranks: To place.
        num_workers: Of each rank.
        slots: How many workers each node can take.
        head_first: Node 0 is filled before the others are looked at.
    """
    if sum(slots) < num_ranks * num_workers:
        return None
    rooms = [slot // num_workers for slot in slots]
    whole = min(num_ranks, sum(rooms))
    counts = fill(whole, rooms, head_first=head_first)
    assert counts is not None
    ranks = [(node,) * num_workers for node, count in enumerate(counts) for _ in range(count)]
    left = [
        (count * num_workers - slot, node)
        for node, (slot, count) in enumerate(zip(slots, counts, strict=True))
    ]
    heapq.heapify(left)
    for _ in range(num_ranks - whole):
        workers: list[int] = []
        while len(workers) < num_workers:
            free, node = heapq.heappop(left)
            taken = min(-free, num_workers - len(workers))
            workers += [node] * taken
            if free + taken < 0:
                heapq.heappush(left, (free + taken, node))
        ranks.append(tuple(workers))
    return sorted(ranks)
