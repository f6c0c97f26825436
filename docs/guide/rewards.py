"""A reward for `train.py ppo`: short answers that end with a full stop."""


def short(prompts: list[str], responses: list[str]) -> list[float]:
    """Return 1 for a response that ends with a full stop, less a hundredth for each character."""
    return [response.endswith(".") - len(response) / 100 for response in responses]
