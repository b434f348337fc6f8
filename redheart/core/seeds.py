"""One seed, named streams: every random choice of a run has a name and can be replayed alone."""

import hashlib


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream called `names`, e.g. `stream_seed(seed, "order", epoch)`."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
