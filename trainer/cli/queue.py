"""Train the runs in a folder's queue, one after another, until the queue is empty.

  python -m trainer queue runs                  # train the queue of runs/ python -m trainer queue
  runs --add my-style   # add runs/my-style at its end python -m trainer queue runs --list

The web page uses the same queue. A run that was stopped or interrupted continues where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runs.folder import Run, safe_join
from ..runs.lock import RunLockedError
from ..runs.queue import Queue
from ..runs.state import read_state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUNS", help="the folder that holds the runs")
    parser.add_argument("--add", metavar="RUN", help="name of a run to add at the end of the queue")
    parser.add_argument("--list", action="store_true", help="only list the jobs")


def run(options: argparse.Namespace) -> int:
    queue = Queue(options.folder)
    if options.add:
        job = queue.add(Run.open(safe_join(queue.root, options.add)))
        print(f"{job.run} is number {[j.id for j in queue.jobs()].index(job.id) + 1} in the queue.")
    elif options.list:
        for number, job in enumerate(queue.jobs(), 1):
            state = read_state(Run(queue.root / job.run))
            print(f"{number}. {job.run} ({state.status}, step {state.step})")
    else:
        try:
            print(f"{queue.work()} job(s) done.")
        except RunLockedError:
            print("Another process is already working on this queue.")
    return 0
