"""What the tests of tasks, kernels and masks share."""

SHAPE = (3, 16, 24)
