"""Diffusion maths on video latents ``(B, C, F, h, w)``: noise levels, readings, samplers."""
