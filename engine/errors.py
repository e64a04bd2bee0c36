"""Errors of the engine package: what the user can mend reads `what: value`, then a hint."""


class EngineError(Exception):
    """Something went wrong in a process of the deployment.

    Attributes:
        hint: What to do about it, or "".
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ModelError(EngineError):
    """A model that is missing, damaged or not supported."""


class CacheError(ModelError):
    """The cache of what is made once cannot be used; the model may be as it should."""


class CapacityError(EngineError):
    """Memory or a device that the plan counts on is not there."""


class KernelError(EngineError):
    """The C kernels cannot be built or used here."""


class ProtocolError(EngineError):
    """A message that breaks the wire protocol."""
