"""How many texts go through a model at once. Lengths enter, groups of positions leave; no text, no model, no tensor.

A batch is padded to its longest text, and padding costs as much as text: so texts of about equal length go together,
and what bounds a batch is its padded size, not its number of texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def windows(sizes: Sequence[int], *, count: int, total: int, first: int | None = None) -> Iterator[range]:
    """Cut positions into consecutive ranges of at most `count` of them whose sizes add up to at most `total`.

    A size above `total` stands alone. What is tokenised at once stays bounded, however much was asked for. `first` is
    the count of the first range where that is another.
    """
    start, held = 0, 0
    for position, size in enumerate(sizes):
        most = count if start or first is None else first
        if position > start and (position - start == most or held + size > total):
            yield range(start, position)
            start, held = position, 0
        held += size
    if start < len(sizes):
        yield range(start, len(sizes))


def batches(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Group positions, longest first, so that texts x longest text of each group is at most `budget` tokens.

    A text longer than the budget is a group of its own. The largest group comes first, so memory that does not
    suffice shows at once. Equal lengths keep their order.
    """
    groups: list[list[int]] = []
    room = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if room == 0:
            groups.append([])
            room = max(1, budget // max(1, lengths[position]))
        groups[-1].append(position)
        room -= 1
    return groups
