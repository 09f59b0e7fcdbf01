"""The table of a longest common subsequence, one integer a row.

The packages whose scores we reproduce fill a table L, L[i][j] being the length for the first i
words of one text and the first j of the other, and trace one longest subsequence back through it.
Which one decides their score, so each trace stands at its metric; they only ask whether a length
grows from one column to the next, which is one bit (Crochemore et al., 2001; Hyyro, 2004). Time is
O(len(rows) * len(columns) / 64).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence


def places_of(columns: Sequence[str], among: Container[str]) -> dict[str, int]:
    """For each word that is `among` the rows', the columns that hold it: bit j for `columns[j]`.

    Other words have no match; a bit for each of them in a text of many would take much memory.
    """
    places: dict[str, int] = {}
    for j, word in enumerate(columns):
        if word in among:
            places[word] = places.get(word, 0) | 1 << j
    return places


def table_rows(rows: Iterable[str], places: Mapping[str, int], columns: int) -> list[int]:
    """Rows 0 to len(rows) of the table over so many `columns`.

    Bit j - 1 of row i is 0 where L[i][j] exceeds L[i][j - 1], 1 where they are equal.
    """
    full = (1 << columns) - 1
    row = full
    table = [row]
    for word in rows:
        match = places.get(word)
        if match:
            kept = row & match
            row = ((row + kept) | (row - kept)) & full
        table.append(row)
    return table
