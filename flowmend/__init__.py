"""flowmend: image restoration with one pre-trained generative flow for every inverse problem.

>>> import flowmend as fm
>>> prior = fm.load("faces32")
>>> task = fm.make_task("deblur", prior.shape)
>>> solution = fm.restore(y, task, prior)
"""

from .continuous import ContinuousPrior
from .errors import FlowmendError
from .flow import FlowConfig, MultiscaleFlow, VelocityConfig, build_flow, build_velocity, preset
from .methods import METHODS
from .metrics import psnr, ssim
from .objective import Objective
from .operators import FunctionOperator, LinearOperator
from .patches import PatchPrior
from .prior import FlowPrior, GaussianPrior, Prior
from .provenance import package_version
from .restoration import restore
from .solution import Solution
from .solver import solve
from .tasks import TASKS, make_task
from .weights import load_prior as load
from .weights import save_prior as save

__version__ = package_version()

__all__ = [
    "METHODS",
    "TASKS",
    "ContinuousPrior",
    "FlowConfig",
    "FlowPrior",
    "FlowmendError",
    "FunctionOperator",
    "GaussianPrior",
    "LinearOperator",
    "MultiscaleFlow",
    "Objective",
    "PatchPrior",
    "Prior",
    "Solution",
    "VelocityConfig",
    "build_flow",
    "build_velocity",
    "load",
    "make_task",
    "preset",
    "psnr",
    "restore",
    "save",
    "solve",
    "ssim",
]
