"""The web trainer: a form that becomes a `TrainConfig`, and views of run folders.

It trains nothing itself: `python -m trainer` does, in processes that outlive the page.
"""
