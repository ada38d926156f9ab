"""Checks in seconds that nothing is missing for a training, before long work starts."""

from .check import check, require_ready
from .findings import Finding, NotReadyError, Readiness

__all__ = ["Finding", "NotReadyError", "Readiness", "check", "require_ready"]
