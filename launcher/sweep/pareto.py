"""The Pareto front: what nothing else beats in both respects."""

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points (cost, gain) than which no other has at most the cost and at least the gain.

    Returns:
        Their places in `points`, cheapest first; of equal points all.
    """
    front: list[int] = []
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    for i in order:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front
