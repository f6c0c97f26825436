"""Side by side with PyTorch, Hugging Face and CTranslate2, in one run of one command: `python -m benchmarks`.

In: names of benchmarks, or none for all that compare with others.
Out: a table of times and ratios, on the screen and in `results.md`.
"""
