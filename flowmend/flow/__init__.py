"""Normalizing flows: bijections with log-determinants, and the multi-scale flow built of them."""

from .bijection import Bijection, Chain
from .coupling import AffineCoupling, Conditioner
from .layers import (
    ActNorm,
    Centre,
    InvertibleConv1x1,
    Squeeze,
    Whitening,
    standard_normal_log_prob,
)
from .multiscale import PRESETS, FlowConfig, MultiscaleFlow, build_flow, preset

__all__ = [
    "PRESETS",
    "ActNorm",
    "AffineCoupling",
    "Bijection",
    "Centre",
    "Chain",
    "Conditioner",
    "FlowConfig",
    "InvertibleConv1x1",
    "MultiscaleFlow",
    "Squeeze",
    "Whitening",
    "build_flow",
    "preset",
    "standard_normal_log_prob",
]
