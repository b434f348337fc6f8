"""The same step in plain torch, chunk by chunk: for machines without a compiler. Correct and slow.

Its results differ from the kernel's in the last bit of a moment, and so at times by one code, because torch has no
fused multiply-add.
"""

import math

import torch
from torch import Tensor

from redheart.memory.adamw8bit.kernel import BLOCK, StepScalars

# 65,536 elements keep every temporary at 256 KiB.
CHUNK = 256 * BLOCK


class Chunked:
    """The functions of `Kernel`, without a compiled library."""

    name = "torch"

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
        for start in range(0, master.numel(), CHUNK):
            part, blocks = slice(start, start + CHUNK), slice(start // BLOCK, (start + CHUNK) // BLOCK)
            moments = [
                dequantise(code[part], scale[blocks], qmap)
                for code, scale, qmap in zip(codes, absmax, qmaps, strict=True)
            ]
            _update(scalars, master[part], grad[part], moments[0], moments[1])
            for code, scale, qmap, moment, smallest in zip(
                codes, absmax, qmaps, moments, (0, scalars.min_code2), strict=True
            ):
                code[part], scale[blocks] = quantise(moment, qmap)
                code[part].clamp_(min=smallest)
            if out_bf16 is not None:
                out_bf16[part] = master[part]

    def update32(
        self,
        scalars: StepScalars,
        master: Tensor,
        grad: Tensor,
        *,
        moments: tuple[Tensor, Tensor],
        out_bf16: Tensor | None = None,
    ) -> None:
        """See `Kernel.update32`."""
        for start in range(0, master.numel(), CHUNK):
            part = slice(start, start + CHUNK)
            _update(scalars, master[part], grad[part], moments[0][part], moments[1][part])
            if out_bf16 is not None:
                out_bf16[part] = master[part]

    def sum_squares(self, grad: Tensor) -> float:
        """See `Kernel.sum_squares`."""
        return math.fsum(chunk.double().square().sum().item() for chunk in grad.split(CHUNK))

    def add(self, total: Tensor, addend: Tensor) -> None:
        """See `Kernel.add`; a chunk's copy stays in the cache."""
        for part, chunk in zip(total.split(CHUNK), addend.split(CHUNK), strict=True):
            part.add_(chunk)


def dequantise(codes: Tensor, absmax: Tensor, qmap: Tensor) -> Tensor:
    """Values of codes, (n,) float32."""
    return qmap[codes.long()] * absmax.repeat_interleave(BLOCK)[: codes.numel()]


def quantise(values: Tensor, qmap: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of the nearest entries of an ascending map, (n,) uint8, and each block's absmax, float32."""
    padded = torch.nn.functional.pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    absmax = padded.abs().amax(1)
    # As in the kernel: what is denormal counts as zero, and a block that is not finite shows at the next step.
    absmax = torch.where(absmax < torch.finfo(torch.float32).tiny, 0.0, absmax)
    is_finite = absmax.isfinite()
    absmax = torch.where(is_finite, absmax, torch.nan)
    scaled = torch.where(is_finite & (absmax > 0), 1 / absmax, 0.0)[:, None] * padded.nan_to_num(0.0, 0.0, 0.0)
    borders = (qmap[1:] + qmap[:-1]) / 2
    return torch.bucketize(scaled.flatten(), borders).to(torch.uint8)[: values.numel()], absmax


def _update(scalars: StepScalars, master: Tensor, grad: Tensor, first: Tensor, second: Tensor) -> None:
    root = math.sqrt(1 - scalars.beta2**scalars.step)
    scaled = grad.float() * scalars.grad_scale
    first.mul_(scalars.beta1).add_(scaled, alpha=1 - scalars.beta1)
    second.mul_(scalars.beta2).addcmul_(scaled, scaled, value=1 - scalars.beta2)
    master.mul_(1 - scalars.learning_rate * scalars.weight_decay)
    denominator = second.sqrt().add_(scalars.eps * root)
    master.addcdiv_(first, denominator, value=-scalars.learning_rate * root / (1 - scalars.beta1**scalars.step))
