"""Normalizing flows: bijections with log-determinants, multi-scale and continuous."""

from .bijection import Bijection, Chain
from .continuous import EVALUATIONS, EXACT_DIMENSIONS, ContinuousFlow
from .coupling import AffineCoupling, Conditioner
from .informed import GaussianVelocity
from .layers import (
    ActNorm,
    Centre,
    ChannelMix,
    InvertibleConv1x1,
    Squeeze,
    Whitening,
    standard_normal_log_prob,
)
from .multiscale import PRESETS, FlowConfig, MultiscaleFlow, build_flow, preset
from .velocity import Drop, VelocityNet, build_velocity, expanded, preconditioning
from .velocity_config import VelocityConfig

__all__ = [
    "EVALUATIONS",
    "EXACT_DIMENSIONS",
    "PRESETS",
    "ActNorm",
    "AffineCoupling",
    "Bijection",
    "Centre",
    "Chain",
    "ChannelMix",
    "Conditioner",
    "ContinuousFlow",
    "Drop",
    "FlowConfig",
    "GaussianVelocity",
    "InvertibleConv1x1",
    "MultiscaleFlow",
    "Squeeze",
    "VelocityConfig",
    "VelocityNet",
    "Whitening",
    "build_flow",
    "build_velocity",
    "expanded",
    "preconditioning",
    "preset",
    "standard_normal_log_prob",
]
