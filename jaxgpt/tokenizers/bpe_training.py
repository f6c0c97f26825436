"""Learning byte-pair merges: the most frequent neighbours become one piece, again and again.

Counts are kept up to date at the places that a merge touches, never recounted (Sennrich et al. 2016, arXiv:1508.07909,
keeps a recount per merge, which is quadratic).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

from jaxgpt.progress import bar
from jaxgpt.tokenizers.bpe_files import BYTES_IN_ORDER

_NOTHING = -1  # the id between words, and where the right half of a merge stood


def learn_merges(words: Iterable[str], num_pieces: int, progress: bool = False) -> list[tuple[bytes, bytes]]:
    """Return merges, in order, until bytes and merged pieces number `num_pieces` or no pair is left.

    Of equally frequent pairs, that of the lowest ids is first; ids are the bytes in GPT-2's order, then the merges.
    """
    pieces = [bytes([byte]) for byte in BYTES_IN_ORDER]
    id_of = {piece: i for i, piece in enumerate(pieces)}
    ids, weight = _lay_out(Counter(words), id_of)
    after, before = list(range(1, len(ids) + 1)), list(range(-1, len(ids) - 1))

    count: defaultdict[tuple[int, int], int] = defaultdict(int)
    where: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for i in range(len(ids) - 1):
        if ids[i] != _NOTHING and ids[i + 1] != _NOTHING:
            pair = ids[i], ids[i + 1]
            count[pair] += weight[i]
            where[pair].append(i)
    # Counts in the heap may be out of date, but only too high: a count that rises is pushed anew.
    heap = [(-n, pair) for pair, n in count.items()]
    heapify(heap)

    merges: dict[tuple[int, int], None] = {}
    with bar("merges", total=num_pieces - 256, unit="merges", show=progress) as shown:
        while heap and len(pieces) < num_pieces:
            n, pair = heappop(heap)
            if -n != count[pair]:
                if count[pair] > 0:
                    heappush(heap, (-count[pair], pair))
                continue
            merges[pair] = None
            first, second = pair
            piece = pieces[first] + pieces[second]
            # Two different merges can spell the same piece ("aa" + "aaa", "aaaa" + "a"): it keeps its one id.
            merged = id_of.setdefault(piece, len(pieces))
            if merged == len(pieces):
                pieces.append(piece)
                shown.update()

            change: defaultdict[tuple[int, int], int] = defaultdict(int)
            for i in sorted(where.pop(pair)):  # from the left, so that "aaa" becomes "aa" + "a"
                j = after[i]
                if ids[i] != first or ids[j] != second:
                    continue  # one of the two has been merged with its other neighbour since
                h, k, n = before[i], after[j], weight[i]
                if (left := ids[h]) != _NOTHING:
                    change[left, first] -= n
                    change[left, merged] += n
                    where[left, merged].append(h)
                if (right := ids[k]) != _NOTHING:
                    change[second, right] -= n
                    change[merged, right] += n
                    where[merged, right].append(i)
                ids[i], ids[j], after[i], before[k] = merged, _NOTHING, k, i
            for neighbours, difference in change.items():
                count[neighbours] += difference
                if difference > 0:
                    heappush(heap, (-count[neighbours], neighbours))
            del count[pair]
    return [(pieces[a], pieces[b]) for a, b in merges]


def _lay_out(words: Counter[str], id_of: dict[bytes, int]) -> tuple[list[int], list[int]]:
    """Return the byte ids of all distinct words in one list, `_NOTHING` around each, and each place's word count."""
    byte_ids = [id_of[bytes([byte])] for byte in range(256)]
    ids, weight = [_NOTHING], [0]
    for word, n in words.items():
        encoded = word.encode()
        ids.extend([byte_ids[byte] for byte in encoded])
        ids.append(_NOTHING)
        weight.extend([n] * (len(encoded) + 1))
    return ids, weight
