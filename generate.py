"""Run `python generate.py --help`. The flow stands in jaxgpt/cli/generate.py, installed as `jaxgpt-generate`."""

from jaxgpt.cli.entry import generate

if __name__ == "__main__":
    generate()
