"""Closed forms for the solver of continuous flows."""

import torch
from conftest import smooth_images

import flowmend as fm
from flowmend.guidance import Guidance
from flowmend.stationary import StationaryGaussian

SHAPE = (2, 8, 6)


def gaussian(shape=SHAPE):
    return StationaryGaussian.fit([smooth_images(60, *shape)]).to(torch.zeros(1).double())


def dense(prior):
    """Covariance (D, D), column by column."""
    unit = torch.eye(prior.mean.numel()).double().reshape(-1, *prior.shape)
    return prior.apply(unit, lambda v: v).flatten(1).T


def tasks():
    return (
        fm.make_task("deblur", SHAPE, sigma=0.02),
        fm.make_task("inpaint", SHAPE, sigma=0.01),
        fm.make_task("upscale", SHAPE, sigma=0.05),
        fm.make_task("colorize", SHAPE, sigma=0.03),
    )


def closed_form(prior, operator, sigma, y):
    size = prior.mean.numel()
    covariance = dense(prior)
    matrix = operator.A(torch.eye(size).double().reshape(-1, *SHAPE)).flatten(1).T
    inner = matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix)).double()
    gain = torch.linalg.solve(inner, matrix @ covariance).T
    mean = prior.mean.flatten()
    found = mean + (y.flatten(1) - matrix @ mean) @ gain.T
    return found.reshape(-1, *SHAPE), covariance - gain @ matrix @ covariance


def guidance(task, prior, y, **changes):
    return Guidance(
        y, task.operator, task.sigma, prior, **({"steps": 500, "tolerance": 1e-12} | changes)
    )


def measured(task, count=3, seed=4):
    x = smooth_images(count, *SHAPE, seed=seed).double()
    return task.measure(x, torch.Generator().manual_seed(0))
