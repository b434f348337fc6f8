"""Near-duplicate search beside what a user would otherwise take: rapidfuzz's `cdist`, and the plain double loop.

10,460 texts of 60-200 characters with planted near-duplicates, all in one run. Every way must keep and join the same
texts. Then 100,000 generated records with 30 % copies, half of them exact and half with a few letters changed, and
texts that are all near each other; each in a process of its own, with its peak of memory.

Usage: python benchmarks/dedup.py [--json] [--write] [--double-loop] [--texts N] [--records N]
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz import fuzz, process
from rapidfuzz.distance import Indel
from record import write_result

from redheart.core.config import PrepareConfig
from redheart.data.generator import generate
from redheart.data.input_text import folded
from redheart.data.near_duplicates import near_duplicates
from redheart.data.prepare import prepare

SIMILARITY = 0.92
CHECKED = 2000
"""Records of the large set that the plain double loop goes through too."""
_BLOCK = 512
_ALPHABET = "etaoinshrdlucmfwypvbgkjqxz    ,."
Pairs = list[tuple[int, int]]
Found = tuple[list[bool], list[int]]
"""What is kept, and the smallest member of every text's cluster."""


def make_texts(count: int, *, seed: int) -> list[str]:
    """Random texts with the letter frequencies of a language; one in fifty is an earlier one with a few edits."""
    source = random.Random(seed)
    weights = [1 / (rank + 3) for rank in range(len(_ALPHABET))]
    texts: list[str] = []
    for index in range(count):
        if index and source.random() < 0.02:
            texts.append(_edited(source.choice(texts), source, 12))
        else:
            texts.append("".join(source.choices(_ALPHABET, weights, k=source.randint(60, 200))))
    return texts


def make_records(count: int, *, seed: int) -> list[dict[str, object]]:
    """Generated records, 30 % of them copies of others: half exact, half with one to five letters changed."""
    source = random.Random(seed)
    rows, _ = generate(count * 7 // 10, seed=seed)
    copies = []
    for index in range(count - len(rows)):
        row = source.choice(rows)
        text = _edited(str(row["text"]), source, 5) if index % 2 else row["text"]
        copies.append({**row, "id": f"c{index:06d}", "text": text})
    found = [*rows, *copies]
    source.shuffle(found)
    return found


def _edited(text: str, source: random.Random, most: int) -> str:
    letters = list(text)
    for _ in range(source.randint(1, most)):
        letters[source.randrange(len(letters))] = source.choice(_ALPHABET)
    return "".join(letters)


MIXTURES: dict[str, Callable[[int], list[str]]] = {
    "generated records, 30 % copies": lambda count: [folded(str(row["text"])) for row in make_records(count, seed=0)],
    "all equal": lambda count: ["[removed by the moderators]"] * count,
    "all numbered": lambda count: [f"[removed by moderator {index}]" for index in range(count)],
}


def cdist_pairs(texts: list[str]) -> Pairs:
    """Blocks of the full matrix in float32 (uint8 would round 91.6 up to 92), both cores."""
    pairs = []
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        scores = process.cdist(block, texts, scorer=fuzz.ratio, dtype=np.float32, workers=-1)
        rows, columns = np.nonzero(scores >= 91.999)
        pairs += [(start + int(i), int(j)) for i, j in zip(rows, columns, strict=True) if start + i < j]
    # The border is decided in whole numbers: 1 - d / n >= 0.92 is 25 d <= 2 n.
    return [pair for pair in pairs if _is_pair(texts[pair[0]], texts[pair[1]])]


def double_loop_pairs(texts: list[str]) -> Pairs:
    """Every pair, one after the other."""
    return [(i, j) for i, first in enumerate(texts) for j in range(i + 1, len(texts)) if _is_pair(first, texts[j])]


def _is_pair(first: str, second: str) -> bool:
    return 25 * Indel.distance(first, second) <= 2 * (len(first) + len(second))


def by_pairs(num_texts: int, pairs: Pairs) -> Found:
    """What all pairs together say, by the definitions."""
    kept, smallest = [True] * num_texts, list(range(num_texts))
    for first, second in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
        kept[second] &= not kept[first]
        low, high = sorted((smallest[first], smallest[second]))
        if low != high:
            smallest = [low if item == high else item for item in smallest]
    return kept, smallest


def by_search(texts: list[str]) -> Found:
    """What the package finds."""
    found = near_duplicates(texts, similarity=SIMILARITY)
    return found.kept_N.tolist(), found.clusters_N.tolist()


def search(name: str, count: int) -> dict[str, object]:
    """Time and peak of the search in a mixture, and whether the plain double loop finds the same in its beginning."""
    texts = MIXTURES[name](count)
    (kept, clusters), cost = _measured(lambda: by_search(texts))
    few = texts[:CHECKED]
    same = by_search(few) == by_pairs(len(few), double_loop_pairs(few))
    return {"texts": count, **cost, "kept": sum(kept), "clusters": len(set(clusters)), f"same_on_{len(few)}": same}


def whole_prepare(count: int) -> dict[str, object]:
    """Time and peak of `prepare` on a file of the large set."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "records.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in make_records(count, seed=0))
        with _process() as pool:
            return pool.submit(_prepare, path).result()


def _prepare(path: Path) -> dict[str, object]:
    config = PrepareConfig(duplicate_similarity=SIMILARITY)
    manifest, cost = _measured(lambda: prepare(path, out=path.with_name("out"), config=config, seed=0))
    return {"records": manifest.read, "duplicates": manifest.duplicates, **cost}


def _measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What the work returns, its seconds, those of the processor in all threads together, and the peak so far."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    value = work()
    seconds = {"seconds": time.perf_counter() - start_s, "cpu_seconds": time.process_time() - start_cpu_s}
    return value, {**{name: round(item, 2) for name, item in seconds.items()}, "peak_mib": _peak_mib()}


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _peak_mib() -> int:
    # The system's own account of `getrusage` begins before the interpreter, with what started it.
    with Path("/proc/self/status").open() as file:
        return round(next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024)


def beside_others(texts: list[str], *, double_loop: bool) -> dict[str, object]:
    """Seconds of every way on the same texts, and whether it finds the same."""
    ways: dict[str, Callable[[], Found]] = {
        "near_duplicates": lambda: by_search(texts),
        "cdist": lambda: by_pairs(len(texts), cdist_pairs(texts)),
    }
    if double_loop:
        ways["double_loop"] = lambda: by_pairs(len(texts), double_loop_pairs(texts))
    found, seconds = {}, {}
    for name, way in ways.items():
        start_s = time.perf_counter()
        found[name] = way()
        seconds[name] = round(time.perf_counter() - start_s, 3)
    ours = found["near_duplicates"]
    return {
        "texts": len(texts),
        "kept": sum(ours[0]),
        "clusters": len(set(ours[1])),
        "same": {name: other == ours for name, other in found.items()},
        "seconds": seconds,
        "times_faster": {name: round(value / seconds["near_duplicates"], 1) for name, value in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=10_460)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--double-loop", action="store_true", help="also run the plain double loop (minutes)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/dedup.json")
    options = parser.parse_args()
    result = beside_others(make_texts(options.texts, seed=0), double_loop=options.double_loop)
    large = {}
    for name in MIXTURES:
        with _process() as pool:
            large[name] = pool.submit(search, name, options.records).result()
    result |= {"large": large, "prepare": whole_prepare(options.records)}
    if options.write:
        write_result("dedup", result, settings=vars(options))
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
