"""Stages of a chain that prepare statistics or refine weights, whatever the policy."""

from __future__ import annotations

from adaptmix.policies.transforms.floor import Floor
from adaptmix.policies.transforms.shrink import Shrink
from adaptmix.policies.transforms.smooth import Smooth
from adaptmix.policies.transforms.trust_region import TrustRegion
from adaptmix.policies.transforms.warm_up import WarmUp

__all__ = ["Floor", "Shrink", "Smooth", "TrustRegion", "WarmUp"]
