"""The one primitive of a flow: a map with its log-determinant, and its inverse as a sibling."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Bijection", "Chain"]


class Bijection(nn.Module, ABC):
    """An invertible map whose Jacobian determinant is known.

    Both directions return the log-determinant, shape (B,), in nats, summed over dimensions, of
    the map just applied. Neither changes its argument nor the module.
    """

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps data towards the latent: returns ``(z, logdet)``."""

    @abstractmethod
    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps the latent towards data: returns ``(x, logdet)``."""

    def initialise(self, x: Tensor) -> Tensor:
        """Sets data-dependent parameters from a batch and returns what :meth:`encode` makes of it.

        Called once, on purpose, before training. Bijections without such parameters only encode.
        """
        with torch.no_grad():
            return self.encode(x)[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same as :meth:`encode`."""
        return self.encode(x)


class Chain(Bijection):
    """Bijections one after another."""

    def __init__(self, layers: Iterable[Bijection]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for layer in self.layers:
            x, logdet = layer.encode(x)
            total = total + logdet
        return x, total

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[0])
        for layer in reversed(self.layers):
            z, logdet = layer.decode(z)
            total = total + logdet
        return z, total

    def initialise(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.initialise(x)
        return x
