"""The same step on a card, by bitsandbytes: for the part of an optimizer whose masters and states lie there.

Its rounding is not the kernel's: it decays weights after the update, and codes of a second moment may be zero.
"""

import torch
from torch import Tensor

from redheart.memory.adamw8bit.chunked import Chunked
from redheart.memory.adamw8bit.kernel import StepScalars


class CardKernel(Chunked):
    """The functions of `Kernel` for tensors of a device; bitsandbytes has them for the CPU as well."""

    def update8(
        self,
        scalars: StepScalars,
        master: Tensor,
        grad: Tensor,
        *,
        codes: tuple[Tensor, Tensor],
        absmax: tuple[Tensor, Tensor],
        qmaps: tuple[Tensor, Tensor],
        out_bf16: Tensor | None = None,
    ) -> None:
        """See `Kernel.update8`."""
        from bitsandbytes.functional import optimizer_update_8bit_blockwise

        optimizer_update_8bit_blockwise(
            "adam",
            grad.float(),
            master,
            codes[0],
            codes[1],
            scalars.beta1,
            scalars.beta2,
            0.0,
            0.0,
            scalars.eps,
            scalars.step,
            scalars.learning_rate,
            qmaps[0],
            qmaps[1],
            absmax[0],
            absmax[1],
            weight_decay=scalars.weight_decay,
            gnorm_scale=scalars.grad_scale,
        )
        if out_bf16 is not None:
            out_bf16.copy_(master)

    def sum_squares(self, grad: Tensor) -> float:
        """See `Kernel.sum_squares`."""
        return float(torch.linalg.vector_norm(grad, dtype=torch.float64) ** 2)
