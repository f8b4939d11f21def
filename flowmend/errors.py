"""The one exception a user is meant to read."""


class FlowmendError(ValueError):
    """Something the caller can put right; the message says what is wrong and what to do."""
