"""`python -m jaxgpt.evaluate`. The flow stands in jaxgpt/cli/evaluate.py, installed as `jaxgpt-evaluate`."""

from jaxgpt.cli.entry import evaluate

if __name__ == "__main__":
    evaluate()
