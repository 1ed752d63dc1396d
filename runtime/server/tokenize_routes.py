"""The routes of `/tokenize` and `/detokenize`."""

import msgspec
from fastapi import FastAPI, Request, Response

from plimsoll.runtime.server import openapi
from plimsoll.runtime.server.serving import Serving
from plimsoll.runtime.server.tokenizing import Detokenized, DetokenizeRequest, Piece, Tokenized, TokenizeRequest


def add(app: FastAPI, serving: Serving) -> None:
    """Adds the routes to `app`."""

    @app.post("/tokenize", tags=["Tokens"], **openapi.reads(TokenizeRequest, Tokenized))
    async def tokenize(request: Request) -> Response:
        """Gives the token ids of a prompt or a conversation."""
        prepared = await serving.prepare("tokenize", request)
        assert isinstance(prepared.request, TokenizeRequest)
        [(_, ids)] = prepared.prompts
        found = Tokenized(len(ids), serving.known_engine().model_len, ids)
        if prepared.request.with_pieces:
            found.tokens = [Piece(token, _piece(*serving.texts[token])) for token in ids]
        if prepared.request.return_token_strs:
            found.token_strs = serving.tokenizer.convert_ids_to_tokens(ids)
        return Response(msgspec.json.encode(found), media_type="application/json")

    @app.post("/detokenize", tags=["Tokens"], **openapi.reads(DetokenizeRequest, Detokenized))
    async def detokenize(request: Request) -> Response:
        """Gives the text of token ids."""
        prepared = await serving.prepare("detokenize", request)
        [(text, _)] = prepared.prompts
        assert isinstance(prepared.request, DetokenizeRequest)
        found = Detokenized(text, text if prepared.request.model is None else msgspec.UNSET)
        return Response(msgspec.json.encode(found), media_type="application/json")


def _piece(text: str, raw: list[int]) -> str | list[int]:
    """The text of a token; its bytes where they are no whole characters."""
    return raw if "\ufffd" in text else text
