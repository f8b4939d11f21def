"""An optimiser that gives every direction of a convolution's weights a step of the same length.

The momentum of a weight matrix is replaced by the nearest orthogonal one before it is followed:
rare directions learn as fast as common ones. All other parameters follow AdamW.

Sources: Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024),
https://kellerjordan.github.io/posts/muon/; of the length of its steps: Muon is Scalable for LLM
Training (Liu et al., 2025), https://arxiv.org/abs/2502.16982
"""

import math

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalised"]

POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Coefficients of s, s^3 and s^5: repeated, they take every s in (0, 1] to about 0.7 to 1.2."""
ROUNDS = 5
MOMENTUM = 0.95
STEP_SIZE = 0.2
"""Root mean square of an AdamW step, which an orthogonal one is scaled to, as a share of the
learning rate."""
OTHERS = 0.5
"""Learning rate of AdamW as a share of the others'."""
NARROWEST = 32
"""Convolutions of fewer channels, in or out, follow AdamW."""
EPSILON = 1e-8


def orthogonalised(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About the nearest matrix with orthonormal rows or columns, (m, n), in a precision."""
    x = matrix / matrix.norm().clamp_min(1e-30)
    x = x.to(dtype)
    wide = x if len(x) <= x.shape[1] else x.T
    a, b, c = POLYNOMIAL
    for _ in range(ROUNDS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if len(x) <= x.shape[1] else wide.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the weights of wide convolutions, AdamW for everything else.

    Args:
        module: What is trained; all its parameters, in their order.
        lr: Learning rate of convolutions; of the others half of it.
        betas: Decay rates of AdamW.
        weight_decay: Decoupled weight decay of convolutions.
        dtype: Precision of the products that make a momentum orthogonal.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        parameters = list(module.parameters())
        matrices = [p for p in parameters if p.ndim == 4 and min(p.shape[:2]) >= NARROWEST]
        chosen = {id(p) for p in matrices}
        others = [p for p in parameters if id(p) not in chosen]
        groups = [
            {"params": matrices, "orthogonal": True},
            {"params": others, "orthogonal": False},
        ]
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, {"lr": lr})
        self.betas, self.weight_decay, self.dtype = betas, weight_decay, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step along the gradients that are there."""
        for group in self.param_groups:
            move = self._orthogonal if group["orthogonal"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move(parameter, group["lr"])

    def _orthogonal(self, parameter: Tensor, lr: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1.0 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)
        flat = ahead.permute(0, 2, 3, 1).flatten(1)
        size = STEP_SIZE * math.sqrt(max(flat.shape))
        step = orthogonalised(flat, self.dtype)
        step = step.view(len(flat), *parameter.shape[2:], -1).permute(0, 3, 1, 2)
        parameter.mul_(1.0 - lr * self.weight_decay).add_(step, alpha=-lr * size)

    def _adam(self, parameter: Tensor, lr: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        count = float(state["step"])
        mean = state["mean"].lerp_(gradient, 1.0 - self.betas[0])
        square = state["square"].lerp_(gradient.square(), 1.0 - self.betas[1])
        scale = (square / (1.0 - self.betas[1] ** count)).sqrt().add_(EPSILON)
        parameter.addcdiv_(mean, scale, value=-lr * OTHERS / (1.0 - self.betas[0] ** count))
