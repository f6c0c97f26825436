"""`python -m jaxgpt.explore MODEL --text "…" --out page.html`."""

from jaxgpt.cli.entry import explore

if __name__ == "__main__":
    explore()
