"""Is everything there that a training needs? Answered in seconds, before anything long starts."""

from .check import check, require_ready
from .findings import Finding, NotReadyError, Readiness

__all__ = ["Finding", "NotReadyError", "Readiness", "check", "require_ready"]
