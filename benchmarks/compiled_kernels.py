"""Kernels that torch.compile leaves of a preset's pass, by its scheduler on the CPU; nothing is compiled.

Usage: python benchmarks/compiled_kernels.py [--preset full] [--write]

A card's scheduler joins more of them, and has attention and norms of its own: its count is less than this one and not
less than that of the products and other kernels that are never joined (`extern`).
"""

import argparse
import copy
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from record import write_result
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import detect_fake_mode
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode, Scheduler
from torch._inductor.virtualized import V

from redheart.core.config import FeatureConfig, StudyConfig
from redheart.study.outlook import planning

RECORDS, LENGTH = 2, 128


def kernels(name: str) -> Counter[str]:
    """Of a forward and backward pass: all of them, and those that are never joined with others."""
    found: Counter[str] = Counter()

    def counted(which: str) -> Callable[..., Any]:
        def run(module: torch.fx.GraphModule, inputs: Any) -> Any:
            lowered = copy.deepcopy(module)
            view_to_reshape(lowered)
            graph = GraphLowering(lowered, example_inputs=inputs, is_backward=which == "backward")
            fake = detect_fake_mode(inputs)
            with V.set_graph_handler(graph), V.set_fake_mode(fake), V.set_debug_handler(DebugContext()):
                graph.run(*inputs)
                nodes = [node for node in Scheduler(graph.operations).nodes if type(node) is not NopKernelSchedulerNode]
            found[which] += len(nodes)
            found["extern"] += sum(isinstance(node, ExternKernelSchedulerNode) for node in nodes)
            return make_boxed_func(module.forward)

        return run

    backend = aot_autograd(
        fw_compiler=counted("forward"),
        bw_compiler=counted("backward"),
        decompositions=select_decomp_table,
        partition_fn=min_cut_rematerialization_partition,
    )
    config = StudyConfig(preset=name, features=FeatureConfig(seq_len_tokens=LENGTH))  # type: ignore[arg-type]
    work = planning.workload(config, device="cpu")
    batch = tuple(torch.zeros_like(item) for item in work.batch(RECORDS))
    work.loss(torch.compile(work.module, backend=backend), batch).backward()  # type: ignore[no-untyped-call, arg-type]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="full")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = kernels(options.preset)
    result = {"kernels": found["forward"] + found["backward"], "extern": found["extern"]}
    if options.write:
        write_result("compiled_kernels", result, settings={"preset": options.preset, "length": LENGTH})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
