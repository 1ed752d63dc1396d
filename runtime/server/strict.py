"""The rule for every object of a request: no unknown field, no NaN, and no value of another type."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Nothing unknown, no NaN, and nothing coerced but numbers that are written in another way (16.0, "0.5")."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
