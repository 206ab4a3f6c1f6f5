"""Methods to compare with that are not the package's own: DFQ, and other tools where they are installed."""


class Unavailable(Exception):
    """A baseline cannot do what is asked of it; the message says why, in words."""
