"""Run `python train.py --help`. The flow stands in jaxgpt/cli/train.py, installed as `jaxgpt-train`."""

from jaxgpt.cli.train import main

if __name__ == "__main__":
    main()
