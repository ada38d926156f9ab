"""Commands of ``python -m trainer``; each module has ``add_arguments`` and ``run``."""
