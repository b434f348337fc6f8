"""Kill a rewriting of snapshots before every single file operation, and look whether everything can still be read.

Usage: python killed_operations.py ROOT WORK OPERATION    (one of OPERATIONS below)

Prints one JSON object: at how many instants it was killed, and what was wrong at which. Each death is a process of its
own that ends without any clean-up, as under SIGKILL.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from redheart.snapshots.compress import compress_snapshots, expand
from redheart.snapshots.module_snapshots import list_snapshots
from redheart.snapshots.prune import Keep, prune

FILE_OPERATIONS = {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


def run_and_die(action: Callable[[], object], at: int) -> int:
    """Run in a child that dies before its file operation number `at`; its exit code, 0 if it lived to the end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count > at:
            os._exit(9)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        opens_to_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in FILE_OPERATIONS or opens_to_write:
            step()

    # A death of the process, not of the machine, needs no flushing, which takes most of the time.
    os.fsync = lambda _: step()
    sys.addaudithook(watch)
    try:
        action()
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)


def weights(root: Path) -> dict[int, dict[str, bytes]]:
    """Every tensor of every snapshot."""
    return {
        snapshot.epoch: {
            f"{name}.{key}": tensor.contiguous().view(torch.uint8).numpy().tobytes()
            for name in snapshot.manifest.modules
            for key, tensor in snapshot.open_module(name).items()
        }
        for snapshot in list_snapshots(root)
    }


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "compress": compress_snapshots,
    "expand": lambda root: [expand(snapshot) for snapshot in list_snapshots(root)],
    "prune": lambda root: prune(root, Keep(last=1, every=2), remove=True),
}


def main(source: Path, work: Path, operation: str) -> None:
    torch.set_num_threads(1)
    action = OPERATIONS[operation]
    root = work / "snapshots"
    expected = weights(source)

    shutil.copytree(source, root)
    assert run_and_die(lambda: action(root), 10**9) == 0
    finished, kept = files(root), weights(root)
    problems: list[str] = []
    at = 0
    while True:
        shutil.rmtree(root)
        shutil.copytree(source, root)
        code = run_and_die(lambda: action(root), at)
        if code == 0:
            break
        try:
            found = weights(root)
            wrong = {epoch for epoch, tensors in found.items() if tensors != expected[epoch]}
            missing = set(kept) - set(found)
            if code != 9 or wrong or missing:
                problems.append(f"{at}: code {code}, wrong {wrong}, missing {missing}")
        except Exception as error:
            problems.append(f"{at}: {error}")
        # Left alone, it ends with the same bytes.
        code = run_and_die(lambda: action(root), 10**9)
        other = {name for name, content in (files(root).items() ^ finished.items())}
        if code != 0 or other:
            problems.append(f"{at}: the second run ended with code {code}, other files: {other}")
        at += 1
    print(json.dumps({"kills": at, "problems": problems}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
