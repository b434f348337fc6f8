"""`OffloadAdamW8bit` in a plain loop: seconds of a step with its work in turn and beside the passes.

Usage: python benchmarks/plain_loop.py [--preset full] [--records 64] [--steps 12] [--name NAME] [--write]

The passes are of random features. Without a CUDA device there is nothing to overlap, and only the first is run.
"""

import argparse
import json
import statistics
import time

from record import write_result

from redheart.cli import set_environment


def seconds_of(options: argparse.Namespace, *, overlaps: bool) -> dict[str, object]:
    """Steps of one way, until the last one's weights are there."""
    import torch

    from redheart.model.dims import preset
    from redheart.model.network import build
    from redheart.optim import OffloadAdamW8bit
    from redheart.train.zero.groups import parameter_groups

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(preset(options.preset), seed=0).to(device, torch.bfloat16)
    optimizer = OffloadAdamW8bit(
        parameter_groups(model, weight_decay=0.01), lr=1e-4, max_grad_norm=1.0, overlap=model if overlaps else None
    )
    random = torch.Generator().manual_seed(0)
    features_BSD = torch.randn(options.records, options.seq_len_tokens, 768, generator=random).to(
        device, torch.bfloat16
    )
    mask_BS = torch.ones(options.records, options.seq_len_tokens, dtype=torch.bool, device=device)
    norms, seconds = [], []
    for _ in range(options.steps):
        start_s = time.perf_counter()
        loss = sum(item.float().square().mean() for item in model(features_BSD, mask_BS).values())
        loss.backward()
        optimizer.step()
        # What a loop would log; the updates go on behind it.
        norms.append(optimizer.grad_norm)
        seconds.append(time.perf_counter() - start_s)
    optimizer.finish()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"median_step_s": statistics.median(seconds[2:]), "grad_norms": norms, "peak_allocated_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="full")
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--seq-len-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--name", default="plain_loop", help="of the result's file")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/NAME.json")
    options = parser.parse_args()
    set_environment()
    import torch

    found: dict[str, object] = {}
    for name, overlaps in (("in turn", False), ("beside the passes", True)):
        if overlaps and not torch.cuda.is_available():
            continue
        found[name] = seconds_of(options, overlaps=overlaps)
        if options.write:
            write_result(options.name, found, settings=vars(options))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
