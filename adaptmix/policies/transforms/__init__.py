"""Stages of a chain that prepare statistics or refine weights, whatever the policy."""

from __future__ import annotations

from adaptmix.policies.transforms._floor import Floor
from adaptmix.policies.transforms._shrink import Shrink
from adaptmix.policies.transforms._smooth import Smooth
from adaptmix.policies.transforms._trust_region import TrustRegion
from adaptmix.policies.transforms._warm_up import WarmUp

__all__ = ["Floor", "Shrink", "Smooth", "TrustRegion", "WarmUp"]
