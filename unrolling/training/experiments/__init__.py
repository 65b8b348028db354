"""The papers' claims, measured again at the scale of one machine: each experiment trains, measures, tabulates and draws."""

from .common import Experiment, Setting
from .fair import FAIR

__all__ = ["EXPERIMENTS", "Experiment", "Setting"]

EXPERIMENTS = {each.name: each for each in (FAIR,)}
"""Every experiment by its name, in order."""
