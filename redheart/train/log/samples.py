"""Memory and load while a run goes on, sampled by a thread into a file of its own.

The file is only ever appended to: unlike the event log it is not cut back on a resume, so the thread need not know of
states. Nothing that goes wrong here reaches the run.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from redheart.core.progress import Ticker
from redheart.memory.host import host_memory
from redheart.train.log.events import Event, time_utc


@contextmanager
def sampling(path: Path, *, every_s: float, step: Callable[[], int]) -> Iterator[None]:
    """Append a sample at once, then every `every_s` seconds, and a last one at the end; 0 takes none."""
    if every_s <= 0:
        yield
        return
    process, probe = psutil.Process(), device_probe()
    # The share of one core in percent, between one call and the next.
    process.cpu_percent()

    def take() -> None:
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            sample: Event = {
                "event": "sample",
                "step": step(),
                "time_utc": time_utc(),
                "host_rss_bytes": process.memory_info().rss,
                "host_available_bytes": host_memory().available_bytes,
                "cpu_percent": process.cpu_percent(),
                **probe(),
            }
            file.write(json.dumps(sample) + "\n")

    take()
    try:
        with Ticker(take, quiet_s=every_s):
            yield
    finally:
        take()


def device_probe() -> Callable[[], dict[str, object]]:
    """What tells memory and utilisation of the card in use by NVML; nothing where there is no card or no NVML."""
    import torch

    if not torch.cuda.is_available():
        return dict
    try:
        import pynvml
    except ImportError:
        return dict
    try:
        pynvml.nvmlInit()
        # CUDA_VISIBLE_DEVICES renumbers the cards for torch and not for NVML.
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return dict

    def probe() -> dict[str, object]:
        try:
            memory, load = pynvml.nvmlDeviceGetMemoryInfo(card), pynvml.nvmlDeviceGetUtilizationRates(card)
        except pynvml.NVMLError:
            return {}
        return {
            "device_used_bytes": int(memory.used),
            "device_total_bytes": int(memory.total),
            "device_busy_percent": int(load.gpu),
        }

    return probe
