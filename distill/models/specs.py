"""Names and shapes of the series' networks; no Paddle import, so that validation is instant."""


def check_model_name(name: str) -> None:
    """Placeholder until the specs stand."""
