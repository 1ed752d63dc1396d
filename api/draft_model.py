"""`serving.draft`: a smaller model that guesses what the model will say."""

from plimsoll.api.checkpoint_source import Address
from plimsoll.api.fields import Part


class DraftModel(Part):
    """A smaller model with the same tokens. The budget counts it."""

    source: Address
    """Where the draft is, as in model.source. Where both addresses begin alike, it is opened with the model's
    credentialsSecret, endpoint and cacheClaim."""
