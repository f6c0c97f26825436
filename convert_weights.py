"""Run `python convert_weights.py --help`. The flow stands in jaxgpt/cli/convert.py, installed as `jaxgpt-convert`."""

from jaxgpt.cli.entry import convert

if __name__ == "__main__":
    convert()
