"""Estimators of sums of per-sample gradients."""
