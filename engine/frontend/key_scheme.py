"""How /openapi.json says that a key is asked for."""

from fastapi import FastAPI

from engine.frontend.gate import OPEN_PATHS

_NAME = "key"


def describe_keys(app: FastAPI) -> None:
    """Has an app's own description name the bearer scheme, and the paths that ask for a key."""
    plain = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = plain()  # which is kept
            scheme = {"type": "http", "scheme": "bearer", "description": "Any one of the API keys."}
            schema["components"]["securitySchemes"] = {_NAME: scheme}
            for path, methods in schema["paths"].items():
                for operation in methods.values() if path not in OPEN_PATHS else ():
                    operation["security"] = [{_NAME: []}]
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
