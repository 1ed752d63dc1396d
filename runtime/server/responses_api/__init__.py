"""OpenAI's Responses API, without its store: `/v1/responses`."""
