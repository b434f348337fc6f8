"""The same step without a compiled kernel: in plain torch, chunk by chunk, correct and slow; or on a card.

Its results differ from the kernel's in the last bit of a moment, and so at times by one code, because torch has no
fused multiply-add.
"""

import math

import torch
from torch import Tensor

from redheart.kernel.bindings import BLOCK, Moments, StepScalars

# 65,536 elements keep every temporary at 256 KiB.
CHUNK = 256 * BLOCK


class Chunked:
    """The functions of `Kernel`, without a compiled library."""

    name = "torch"

    def update(
        self,
        scalars: StepScalars,
        master: Tensor,
        grad: Tensor,
        moments: Moments,
        out_bf16: Tensor | None = None,
    ) -> None:
        """See `Kernel.update`."""
        for start in range(0, master.numel(), CHUNK):
            part, blocks = slice(start, start + CHUNK), slice(start // BLOCK, (start + CHUNK) // BLOCK)
            states = [state[part] for state in moments.states]
            # None of 32-bit moments.
            coded = list(zip(states, [scale[blocks] for scale in moments.absmax], moments.qmaps, strict=False))
            floats = [dequantise(*item) for item in coded] or states
            _update(scalars, master[part], grad[part], *floats)
            for (codes, scale, qmap), moment, smallest in zip(coded, floats, (0, scalars.min_code2), strict=False):
                codes[:], scale[:] = quantise(moment, qmap)
                codes.clamp_(min=smallest)
            if out_bf16 is not None:
                out_bf16[part] = master[part]

    def sum_squares(self, grad: Tensor) -> float:
        """See `Kernel.sum_squares`."""
        return math.fsum(chunk.double().square().sum().item() for chunk in grad.split(CHUNK))

    def add(self, total: Tensor, addend: Tensor) -> None:
        """See `Kernel.add`; a chunk's copy stays in the cache."""
        for part, chunk in zip(total.split(CHUNK), addend.split(CHUNK), strict=True):
            part.add_(chunk)


class CardKernel(Chunked):
    """By bitsandbytes, for the part of an optimizer whose masters and states lie on a card; it has the CPU as well.

    Its rounding is not the kernel's: it decays weights after the update, and codes of a second moment may be zero.
    """

    def update(
        self,
        scalars: StepScalars,
        master: Tensor,
        grad: Tensor,
        moments: Moments,
        out_bf16: Tensor | None = None,
    ) -> None:
        """See `Kernel.update`."""
        if not moments.absmax:
            super().update(scalars, master, grad, moments, out_bf16)
            return
        from bitsandbytes.functional import optimizer_update_8bit_blockwise

        (codes1, codes2), (absmax1, absmax2), (qmap1, qmap2) = moments
        optimizer_update_8bit_blockwise(
            "adam",
            grad.float(),
            master,
            codes1,
            codes2,
            scalars.beta1,
            scalars.beta2,
            0.0,
            0.0,
            scalars.eps,
            scalars.step,
            scalars.learning_rate,
            qmap1,
            qmap2,
            absmax1,
            absmax2,
            weight_decay=scalars.weight_decay,
            gnorm_scale=scalars.grad_scale,
        )
        if out_bf16 is not None:
            out_bf16.copy_(master)

    def sum_squares(self, grad: Tensor) -> float:
        """See `Kernel.sum_squares`."""
        return float(torch.linalg.vector_norm(grad, dtype=torch.float64) ** 2)


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
