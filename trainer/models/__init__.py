"""Model files in every form that people have: weights, checkpoints, motion modules, vocabularies.

What a file holds is read here into one form; what a base model is made of it is `families`' part.
Needs torch and safetensors only until a network is built, so that viewers start fast.
"""
