"""How good a few-step student is: distances, optical flow, caption accuracy, and their table."""
