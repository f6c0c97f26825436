"""The commands: parse flags, call the library, print.

In: `sys.argv`. Out: an exit code — 0 done, 1 a failed run, 2 bad input — and for 1 and 2 one line that says why.
"""
