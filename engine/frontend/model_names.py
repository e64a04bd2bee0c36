"""Which model a request means."""

from engine.frontend.errors import NotFound

_MAX_QUOTED = 64


def check_model(name: str | None, served: str) -> None:
    """Nothing means the model that is served.

    Raises:
        NotFound: It is another one.
    """
    if name is not None and name != served:
        message = f"The model {ascii(name[:_MAX_QUOTED])} does not exist. Served is '{served}'."
        raise NotFound(message, param="model", code="model_not_found")
