"""How a diffusers video model becomes a native MODEL, CLIP and VAE; no node classes here."""
