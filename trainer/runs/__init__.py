"""The run folder: its layout, state, events, checkpoints and the guards of a long training."""
