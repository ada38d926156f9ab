"""Measures of a few-step student: distances, optical flow, caption accuracy, and their table."""
