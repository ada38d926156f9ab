"""Turns a diffusers video model into a native MODEL, CLIP and VAE; no node classes here."""
