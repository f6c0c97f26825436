"""From text to a model that answers as people prefer, on a laptop: `python -m recipes.align`, or `make align`.

plays ──▶ data.py ──▶ train.py, stage by stage (commands.py), make_pairs.py between two ──▶ results.py ──▶ page.py
                       evaluate.py samples answers, rules.py judges them

A user asks a character of Shakespeare's to speak. The answer is to be of one format; and of two answers in that
format, a question is the better one.
"""
