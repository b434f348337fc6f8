"""Near-duplicate search beside what a user would otherwise take: rapidfuzz's `cdist`, and the plain double loop.

10,460 texts of 60-200 characters with planted near-duplicates, all in one run. Every way must find the same pairs.

Usage: python benchmarks/dedup.py [--json] [--write] [--double-loop] [--texts N]
"""

import argparse
import json
import random
import time

import numpy as np
from rapidfuzz import fuzz, process
from rapidfuzz.distance import Indel
from record import write_result

from redheart.data.near_duplicates import near_duplicate_pairs

SIMILARITY = 0.92
_BLOCK = 512
_ALPHABET = "etaoinshrdlucmfwypvbgkjqxz    ,."


def make_texts(count: int, *, seed: int) -> list[str]:
    """Random texts with the letter frequencies of a language; one in fifty is an earlier one with a few edits."""
    source = random.Random(seed)
    weights = [1 / (rank + 3) for rank in range(len(_ALPHABET))]
    texts: list[str] = []
    for index in range(count):
        if index and source.random() < 0.02:
            letters = list(texts[source.randrange(index)])
            for _ in range(source.randint(1, 12)):
                letters[source.randrange(len(letters))] = source.choice(_ALPHABET)
            texts.append("".join(letters))
        else:
            texts.append("".join(source.choices(_ALPHABET, weights, k=source.randint(60, 200))))
    return texts


def cdist_pairs(texts: list[str]) -> list[tuple[int, int]]:
    """Blocks of the full matrix in float32 (uint8 would round 91.6 up to 92), both cores."""
    pairs = []
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        scores = process.cdist(block, texts, scorer=fuzz.ratio, dtype=np.float32, workers=-1)
        rows, columns = np.nonzero(scores >= 91.999)
        pairs += [(start + int(i), int(j)) for i, j in zip(rows, columns, strict=True) if start + i < j]
    # The border is decided in whole numbers: 1 - d / n >= 0.92 is 25 d <= 2 n.
    return sorted(pair for pair in pairs if _is_pair(texts[pair[0]], texts[pair[1]]))


def double_loop_pairs(texts: list[str]) -> list[tuple[int, int]]:
    """Every pair, one after the other."""
    return [(i, j) for i, first in enumerate(texts) for j in range(i + 1, len(texts)) if _is_pair(first, texts[j])]


def _is_pair(first: str, second: str) -> bool:
    return 25 * Indel.distance(first, second) <= 2 * (len(first) + len(second))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=10_460)
    parser.add_argument("--double-loop", action="store_true", help="also run the plain double loop (minutes)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/dedup.json")
    options = parser.parse_args()
    texts = make_texts(options.texts, seed=0)
    ways = {"near_duplicate_pairs": lambda: near_duplicate_pairs(texts, similarity=SIMILARITY)}
    ways["cdist"] = lambda: cdist_pairs(texts)
    if options.double_loop:
        ways["double_loop"] = lambda: double_loop_pairs(texts)
    pairs, seconds = {}, {}
    for name, way in ways.items():
        start_s = time.perf_counter()
        pairs[name] = way()
        seconds[name] = round(time.perf_counter() - start_s, 3)
    ours = pairs["near_duplicate_pairs"]
    result = {
        "texts": len(texts),
        "pairs": len(ours),
        "same_pairs": {name: found == ours for name, found in pairs.items()},
        "seconds": seconds,
        "times_faster": {name: round(value / seconds["near_duplicate_pairs"], 1) for name, value in seconds.items()},
    }
    if options.write:
        write_result("dedup", result, settings=vars(options))
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
