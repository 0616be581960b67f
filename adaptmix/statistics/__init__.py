"""What a run tells about its domains: sums and running estimates."""

from adaptmix.statistics._lengths import known_lengths
from adaptmix.statistics._measurements import Measurements
from adaptmix.statistics._watch import Watch

__all__ = ["Measurements", "Watch", "known_lengths"]
