"""`serving.draft`: a smaller model that guesses what the model will say."""

from typing import Annotated

from pydantic import Field, field_validator

from plimsoll.api.checkpoint_source import checked_address
from plimsoll.api.fields import Part


class DraftModel(Part):
    """A smaller model with the same tokens. The budget counts it."""

    source: Annotated[str, Field(max_length=1024)]
    """Where the draft is, as in model.source. Where both addresses begin alike, it is opened with the model's
    credentialsSecret, endpoint and cacheClaim."""

    @field_validator("source")
    @classmethod
    def _address(cls, value: str) -> str:
        return checked_address(value)
