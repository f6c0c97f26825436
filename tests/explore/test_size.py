"""A page of GPT-2's size: under 5 MB for a paragraph, and open in under 3 seconds."""

from pathlib import Path

import numpy as np
import pytest

import jaxgpt
from jaxgpt.explore import explore
from jaxgpt.model.atlas import map_parameters
from jaxgpt.model.config import GPTConfig
from jaxgpt.tokenizers import load_tokenizer

PARAGRAPH = (Path(jaxgpt.__file__).parent / "data/plays/hamlet.txt").read_text(encoding="utf-8")[3000:3700]
READY = "return document.documentElement.dataset.ready === 'yes' && document.readyState === 'complete'"
# Milliseconds from the page's beginning to the end of its scripts, after which all views are drawn.
OPENED = "return performance.getEntriesByType('navigation')[0].loadEventEnd"


@pytest.mark.slow
def test_a_page_of_gpt2_is_small_and_opens_soon(browser, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    config, generator = GPTConfig.preset("gpt2"), np.random.default_rng(0)
    params = map_parameters(config, lambda p: 0.05 * generator.standard_normal(p.shape, np.float32))
    page = explore(config, params, load_tokenizer("gpt2"), PARAGRAPH)
    assert len(page.encode()) < 5e6
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    times = []
    for _ in range(3):  # other tests may keep the machine busy
        browser.get(file.as_uri())
        WebDriverWait(browser, 60).until(lambda page: page.execute_script(READY))
        times.append(browser.execute_script(OPENED))
        if times[-1] < 3000:
            break
    assert min(times) < 3000, f"milliseconds: {times}"
    assert browser.get_log("browser") == []
