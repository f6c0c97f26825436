"""Run `python generate.py --help`. The flow stands in jaxgpt/cli/generate.py, installed as `jaxgpt-generate`."""

from jaxgpt.cli.generate import main

if __name__ == "__main__":
    main()
