"""Reads model files in all common formats: weights, checkpoints, motion modules, vocabularies.

What a file holds is read here into one form; what a base model is made of it is `families`' part.
`weights`, `sd15`, `checkpoint` and `motion_module` need torch and safetensors only, so that viewers
start fast; `clip` and `autoencoder` build networks.
"""
