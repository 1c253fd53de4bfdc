"""Pictures: learning curves, timelines of a feed's trace, and bars of several measurements.

matplotlib is imported inside the functions only, and no backend is selected: figures belong to no window.
"""

from .bars import Panel, multiples
from .curves import Curves, learning_curve, learning_curves, moving_mean
from .timelines import timeline, timelines

__all__ = [
    "Curves",
    "Panel",
    "learning_curve",
    "learning_curves",
    "moving_mean",
    "multiples",
    "require",
    "timeline",
    "timelines",
]


def require() -> None:
    """Check that matplotlib is installed, so that a long run fails at its start rather than at its end.

    Raises
    ------
    ImportError
        matplotlib is not installed; the message has the remedy.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(f'pictures need matplotlib: pip install -e ".[demo]" ({error}).') from error
