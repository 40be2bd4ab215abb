"""The verbs of the command line, one file each: its help, its arguments, and what it does.

A file here imports nothing heavy at its head: `run` does, once the configuration is read, so that the help
and a mistake come at once.
"""
