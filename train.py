"""Run `python train.py --help`. The flow stands in jaxgpt/cli/train.py, installed as `jaxgpt-train`."""

from jaxgpt.cli.entry import train

if __name__ == "__main__":
    train()
