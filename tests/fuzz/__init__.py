"""Folders that a stranger may have written, by the thousand: `python -m tests.fuzz --help`.

A case is a (seed, index) pair, from which everything about it follows: the honest folder that it starts from, what is
changed in it, and whether the manifest is made to agree. Each case runs in a process of its own, see
`tests.fuzz.runner`; what counts as a fault is in `tests.fuzz.verdicts`.
"""
