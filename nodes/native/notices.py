"""Placeholder until merged."""
import logging


def tell(text, settings=None):
    logging.warning(text)
