"""The web trainer: `python ui_gradio.py` opens it on http://127.0.0.1:7860.

It trains in processes of their own, so closing the page or ending this program stops nothing.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Read the options and serve; 0 after Ctrl+C, 2 for options that cannot be used."""
    from ui.server import parser, serve

    options = parser().parse_args()
    try:
        serve(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
