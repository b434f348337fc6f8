"""The Kalman filter over the emotion trajectories of a record, without a loop over its tokens.

Both recursions of the filter are associative, so all their prefixes come by doubling, in as many rounds as the number
of tokens has bits: the covariance's, which depends on no measurement (and then no record), and the state's, of which
blocks of tokens are doubled.
Source: Kalman 1960; in parallel: Sarkka and Garcia-Fernandez 2021, lemmas 7 and 8.

Shape suffixes: B batch, S tokens, O outputs (the state's width), T prefixes of the covariance's recursion, E those
that a round extends, 3 the parts of a map of covariances: carry, added and known; P two O side by side; C blocks of N
tokens, R the batch's records and O more.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK = 8
"""Tokens of a block: both passes of 128 tokens take a quarter of the time of doubling alone, more with 4 or 11."""


class EmotionKalman(nn.Module):
    """Fuses two emotion trajectories by a Kalman filter over the tokens; predicts from the last state.

    A weighting network mixes the two measurements of a token. Noise matrices are L L' + eps I, so they are positive
    definite whatever L is. Computed in float32 whatever the parameters' type.
    """

    EPSILON = 1e-3

    def __init__(self, outputs: int):
        super().__init__()
        self.transition = nn.Parameter(torch.empty(outputs, outputs))
        self.observation = nn.Parameter(torch.empty(outputs, outputs))
        self.process_root = nn.Parameter(torch.empty(outputs, outputs))
        self.measurement_root = nn.Parameter(torch.empty(outputs, outputs))
        self.weigh = nn.Sequential(nn.Linear(2 * outputs, 32), nn.Tanh(), nn.Linear(32, 2))

    def start(self, generator: torch.Generator) -> None:
        """Begin as a slow random walk observed directly, slightly off the exact identity."""
        with torch.no_grad():
            for matrix, scale in (
                (self.transition, 0.9),
                (self.observation, 1.0),
                (self.process_root, 0.3),
                (self.measurement_root, 1.0),
            ):
                noise = torch.randn(matrix.shape, generator=generator) * 0.02
                matrix.copy_(torch.eye(matrix.shape[0]) * scale + noise)

    def forward(self, first_BSO: Tensor, second_BSO: Tensor, mask_BS: Tensor) -> Tensor:
        """Fused emotion logits (B, O): the state after the last real token. Padding is on the right."""
        pair_BSPO = torch.stack((first_BSO, second_BSO), dim=-2).log_softmax(-1)
        share_BSP = self.weigh(pair_BSPO.flatten(-2)).float().softmax(-1)
        measured_BSO = (pair_BSPO.float() * share_BSP[..., None]).sum(-2)
        transition, observation = self.transition.float(), self.observation.float()
        roots_2OO = torch.stack((self.process_root, self.measurement_root)).float()
        least_OO = self.EPSILON * torch.eye(transition.shape[0], device=transition.device)
        process, measurement = torch.baddbmm(least_OO.expand_as(roots_2OO), roots_2OO, roots_2OO.mT).unbind()
        gains_SOO = kalman_gains(transition, observation, process, measurement, tokens=first_BSO.shape[1])
        # With its gain known, a step is one affine map of the state: x' = x M + u.
        maps_SOO = transition.T - (transition.T @ observation.T) @ gains_SOO.mT
        inputs_SBO = measured_BSO.transpose(0, 1) @ gains_SOO.mT
        last_B = mask_BS.sum(1) - 1
        state_BO = affine_state(maps_SOO, inputs_SBO, last_B)
        return torch.where(last_B[:, None] < 0, 0.0, state_BO).to(first_BSO.dtype)


def kalman_gains(
    transition: Tensor, observation: Tensor, process: Tensor, measurement: Tensor, *, tokens: int
) -> Tensor:
    """The gain of every token, (S, O, O), of a filter that starts at the identity as its covariance.

    Args:
        transition: the state's map from token to token, (O, O).
        observation: what is seen of a state, (O, O).
        process: covariance of the noise that every token adds to the state, (O, O).
        measurement: covariance of the noise of what is seen, (O, O).
        tokens: how many gains are wanted.

    Where the weights have diverged, so that a matrix is singular, all is NaN.
    """
    faults = []

    def solve(matrices: Tensor, right: Tensor) -> Tensor:
        # Without a check that stops a device; what is singular is answered once, below.
        solution, fault = torch.linalg.solve_ex(matrices, right)
        faults.append(fault.flatten())
        return solution

    width = len(transition)
    identity = torch.eye(width, dtype=transition.dtype, device=transition.device)
    # T steps as one map of covariances, P -> C + A P (I + J P)^-1 A', from one step on.
    seen_noise, seen = observation @ process, observation @ transition
    innovation = torch.addmm(measurement, seen_noise, observation.T)
    weighted_noise, weighted = solve(innovation, torch.cat((seen_noise, seen), -1)).split(width, -1)
    carry = torch.addmm(transition, seen_noise.T, weighted, alpha=-1)
    added = torch.addmm(process, seen_noise.T, weighted_noise, alpha=-1)
    maps_3TOO = torch.stack((carry, added, seen.T @ weighted))[:, None]
    while maps_3TOO.shape[1] < tokens:
        # The longest one first, then each of them: as many steps more.
        more = min(maps_3TOO.shape[1], tokens - maps_3TOO.shape[1])
        longest, its_noise, its_known = maps_3TOO[:, -1].unbind()
        # All of them but in the last round: a slice of everything would cost its gradient a copy.
        extended_3EOO = maps_3TOO if more == maps_3TOO.shape[1] else maps_3TOO[:, :more]
        carry_EOO, added_EOO, known_EOO = extended_3EOO.unbind()
        joint_EOO = torch.baddbmm(identity.expand(more, -1, -1), its_noise.expand(more, -1, -1), known_EOO)
        first_EOP = torch.cat((longest, its_noise), -1).expand(more, -1, -1)
        solved_EOP = solve(joint_EOO, first_EOP)
        carried_EOO = solved_EOP[..., :width]
        new_carry_EOO, noise_EOO = (carry_EOO @ solved_EOP).split(width, -1)
        new_3EOO = torch.stack(
            (
                new_carry_EOO,
                torch.baddbmm(added_EOO, noise_EOO, carry_EOO.mT),
                torch.baddbmm(its_known.expand(more, -1, -1), longest.T.expand(more, -1, -1), known_EOO @ carried_EOO),
            )
        )
        maps_3TOO = torch.cat((maps_3TOO, new_3EOO), 1)
    # From the identity, the covariance before every token's prediction.
    carry_TOO, added_TOO, known_TOO = maps_3TOO.unbind()
    after_TOO = torch.baddbmm(added_TOO, carry_TOO, solve(identity + known_TOO, carry_TOO.mT))
    before_SOO = torch.cat((identity[None], after_TOO[:-1]))
    predicted_SOO = process + transition @ before_SOO @ transition.T
    seen_SOO = observation @ predicted_SOO
    gains_SOO = solve(measurement + seen_SOO @ observation.T, seen_SOO).mT
    # The guard of the training meets the NaN.
    return torch.where(torch.cat(faults).any(), torch.nan, gains_SOO)


def affine_state(maps_SOO: Tensor, inputs_SBO: Tensor, last_B: Tensor) -> Tensor:
    """The state (B, O) of x' = x M + u at the token `last_B` of every record, from zero on.

    Tokens of a block follow one another, of all blocks at once; what a block begins with comes by doubling.
    """
    records, width = inputs_SBO.shape[1:]
    more = -len(maps_SOO) % BLOCK
    maps_CNOO = functional.pad(maps_SOO, (0, 0, 0, 0, 0, more)).unflatten(0, (-1, BLOCK))
    inputs_CNBO = functional.pad(inputs_SBO, (0, 0, 0, 0, 0, more)).unflatten(0, (-1, BLOCK))
    # A block's map so far is the state of O records more, whose one input is the first token's map.
    first_CNOO = functional.pad(maps_CNOO[:, :1], (0, 0, 0, 0, 0, BLOCK - 1))
    inputs_NCRO = torch.cat((inputs_CNBO, first_CNOO), 2).unbind(1)
    states_NCRO = [inputs_NCRO[0]]
    for input_CRO, map_COO in zip(inputs_NCRO[1:], maps_CNOO.unbind(1)[1:], strict=True):
        states_NCRO.append(torch.baddbmm(input_CRO, states_NCRO[-1], map_COO))
    ends_CBO, blocks_COO = states_NCRO[-1].split((records, width), 1)
    begins_CBO = _later(affine_states(blocks_COO, ends_CBO), 1)
    states_CNRO = torch.stack(states_NCRO, 1)
    block_B, token_B, record_B = last_B // BLOCK, last_B % BLOCK, torch.arange(records, device=last_B.device)
    # Records may end at one token: by its number, for by two indices torch would add up their gradients in any order.
    so_far_BOO = states_CNRO[:, :, records:].flatten(0, 1).index_select(0, last_B.clamp(min=0))
    carried_B1O = begins_CBO[block_B, record_B][:, None] @ so_far_BOO
    return states_CNRO[block_B, token_B, record_B] + carried_B1O[:, 0]


def affine_states(maps_SOO: Tensor, inputs_SBO: Tensor) -> Tensor:
    """All states (S, B, O) of x' = x M + u from zero on."""
    distance = 1
    while distance < len(maps_SOO):
        # A state is that of `distance` tokens ago, carried here, and what came in between; at first it was zero.
        inputs_SBO = torch.baddbmm(inputs_SBO, _later(inputs_SBO, distance), maps_SOO)
        distance, before = 2 * distance, distance
        if distance < len(maps_SOO):
            maps_SOO = _later(maps_SOO, before) @ maps_SOO
    return inputs_SBO


def _later(tokens_SXO: Tensor, distance: int) -> Tensor:
    """Moved by so many tokens, with zeros where there were none."""
    return functional.pad(tokens_SXO, (0, 0, 0, 0, distance, -distance))
