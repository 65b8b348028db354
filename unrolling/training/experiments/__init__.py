"""The papers' claims, measured again at the scale of one machine: each experiment trains, measures, tabulates and draws."""

from .common import Experiment, Setting
from .compression import COMPRESSION
from .decoders import DECODING, ROBUSTNESS
from .emergent import EMERGENT
from .fair import FAIR
from .landmarks import LANDMARKS
from .principal import PRINCIPAL
from .promise import PROMISE

__all__ = ["EXPERIMENTS", "Experiment", "Setting"]

EXPERIMENTS = {
    each.name: each for each in (FAIR, DECODING, ROBUSTNESS, COMPRESSION, PRINCIPAL, EMERGENT, LANDMARKS, PROMISE)
}
"""Every experiment by its name, in order."""
