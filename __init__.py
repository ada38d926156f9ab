"""MCM few-step video for ComfyUI: motion consistency distillation students as native models."""
