"""Why a model cannot be served; the text says it in one line."""


class ModelError(Exception):
    """Base of both."""


class ModelNotFound(ModelError, LookupError):
    """No model answers to a name or a reference, or several do."""


class ModelUnfit(ModelError, ValueError):
    """The model is there and does not work, or its weights are those of another."""
