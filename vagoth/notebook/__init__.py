"""Vagoth in notebooks: ``%load_ext vagoth``, then ``%vagoth list`` and every other command.

The magic runs on the notebook's own event loop, over the variable ``cluster`` where there is one.
"""

from vagoth.notebook.magic import CommandFailed, Output, load_ipython_extension

__all__ = ["CommandFailed", "Output", "load_ipython_extension"]
