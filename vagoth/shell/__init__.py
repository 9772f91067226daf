"""The command line and the shell: one grammar, one set of commands.

``grammar`` says what a command is, ``commands`` holds them, ``parser`` reads a line by their
signatures and ``completion`` proposes by the same; ``main`` runs one, ``app`` many.
"""
