"""The order of events in the streams of `/v1/responses` and `/v1/messages`, as their documents have it."""

import json
from collections.abc import Iterable
from typing import Any, ClassVar

Event = dict[str, Any]


def events_of(data: bytes) -> list[Event]:
    """The events of a stream whose events have names; each name is the event's type."""
    found = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        name, text = block.split("\n")
        event = json.loads(text.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


class ResponseFollower:
    """Follows a stream of `/v1/responses` event by event; any event out of place fails."""

    DELTAS: ClassVar = {
        "message": ("response.output_text", "output_text"),
        "reasoning": ("response.reasoning_text", "reasoning_text"),
        "function_call": ("response.function_call_arguments", ""),
    }

    def __init__(self) -> None:
        self.expected: set[str] = {"response.created"}
        self.final: Event | None = None
        self.item: Event | None = None
        self.done: list[Event] = []
        self.number = 0
        self.text = ""
        self.response_id = ""

    def follow(self, events: Iterable[Event]) -> Event:
        """The response that the last event holds."""
        for event in events:
            assert self.final is None, f"{event['type']} after the last event"
            assert event["type"] in self.expected, (event["type"], self.expected)
            assert event["sequence_number"] == self.number
            self.number += 1
            getattr(self, "_" + event["type"].removeprefix("response.").replace(".", "_"))(event)
        assert self.final is not None, f"the stream ends, and one of {self.expected} should come"
        return self.final

    def _created(self, event: Event) -> None:
        self.response_id = event["response"]["id"]
        assert event["response"]["status"] == "in_progress"
        assert event["response"]["output"] == []
        self.expected = {"response.in_progress"}

    def _in_progress(self, event: Event) -> None:
        assert event["response"]["id"] == self.response_id
        self._between()

    def _between(self) -> None:
        self.item, self.text = None, ""
        self.expected = {"response.output_item.added", "response.completed", "response.incomplete", "response.failed"}

    def _output_item_added(self, event: Event) -> None:
        self.item = event["item"]
        assert event["output_index"] == len(self.done)
        assert self.item["status"] == "in_progress"
        assert self.item["id"] not in {item["id"] for item in self.done}
        if self.item["type"] == "function_call":
            assert self.item["arguments"] == ""
            assert self.item["call_id"] != self.item["id"]
            self.expected = self._grows()
        else:
            assert self.item["content"] == []
            self.expected = {"response.content_part.added"}

    def _grows(self) -> set[str]:
        name = self.DELTAS[self.item["type"]][0]
        return {f"{name}.delta", f"{name}.done", "response.failed"}

    def _placed(self, event: Event) -> None:
        assert event["item_id"] == self.item["id"]
        assert event["output_index"] == len(self.done)
        assert event.get("content_index", 0) == 0
        assert ("content_index" in event) == (self.item["type"] != "function_call")

    def _content_part_added(self, event: Event) -> None:
        self._placed(event)
        assert event["part"]["type"] == self.DELTAS[self.item["type"]][1]
        assert event["part"]["text"] == ""
        self.expected = self._grows()

    def _delta(self, event: Event) -> None:
        self._placed(event)
        assert event["delta"]
        self.text += event["delta"]

    _output_text_delta = _reasoning_text_delta = _function_call_arguments_delta = _delta

    def _text_done(self, event: Event) -> None:
        self._placed(event)
        assert event["text"] == self.text
        self.expected = {"response.content_part.done"}

    _output_text_done = _reasoning_text_done = _text_done

    def _function_call_arguments_done(self, event: Event) -> None:
        self._placed(event)
        assert event["arguments"] == self.text
        assert event["name"] == self.item["name"]
        self.expected = {"response.output_item.done"}

    def _content_part_done(self, event: Event) -> None:
        self._placed(event)
        assert event["part"]["text"] == self.text
        self.expected = {"response.output_item.done"}

    def _output_item_done(self, event: Event) -> None:
        item = event["item"]
        assert event["output_index"] == len(self.done)
        for name in ("id", "type", "call_id", "name"):
            assert item.get(name) == self.item.get(name)
        said = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert said == self.text
        self.done.append(item)
        self._between()

    def _ends(self, event: Event) -> None:
        self.final = event["response"]
        assert self.final["id"] == self.response_id
        assert self.final["status"] == event["type"].removeprefix("response.")
        assert self.final["output"] == self.done

    _completed = _incomplete = _failed = _ends


class MessageFollower:
    """Follows a stream of `/v1/messages` event by event; any event out of place fails."""

    DELTAS: ClassVar = {
        "text": {"text_delta": "text"},
        "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
        "tool_use": {"input_json_delta": "partial_json"},
    }

    def __init__(self) -> None:
        self.expected: set[str] = {"message_start"}
        self.message: Event = {}
        self.block: Event | None = None
        self.json = ""
        self.over = False

    def follow(self, events: Iterable[Event]) -> Event:
        """The message that the events make."""
        for event in events:
            assert event["type"] in self.expected | {"ping"}, (event["type"], self.expected)
            getattr(self, "_" + event["type"])(event)
        assert self.over, f"the stream ends, and one of {self.expected} should come"
        return self.message

    def _ping(self, event: Event) -> None:
        assert event == {"type": "ping"}
        assert self.message

    def _message_start(self, event: Event) -> None:
        self.message = event["message"]
        assert self.message["content"] == []
        assert self.message["stop_reason"] is None
        self.expected = {"content_block_start"}

    def _content_block_start(self, event: Event) -> None:
        self.block = event["content_block"]
        assert event["index"] == len(self.message["content"])
        assert not any(self.block.get(name) for name in ("text", "thinking", "input", "signature"))
        self.json = ""
        self.message["content"].append(self.block)
        self.expected = {"content_block_delta", "content_block_stop"}

    def _content_block_delta(self, event: Event) -> None:
        assert event["index"] == len(self.message["content"]) - 1
        delta = event["delta"]
        name = self.DELTAS[self.block["type"]][delta["type"]]
        if name == "partial_json":
            self.json += delta[name]
        else:
            self.block[name] += delta[name]

    def _content_block_stop(self, event: Event) -> None:
        assert event["index"] == len(self.message["content"]) - 1
        if self.json:
            self.block["input"] = json.loads(self.json)
        if self.block["type"] == "thinking":
            assert self.block["signature"]
        self.expected = {"content_block_start", "message_delta"}

    def _message_delta(self, event: Event) -> None:
        self.message |= event["delta"] | {"usage": event["usage"]}
        self.expected = {"message_stop"}

    def _message_stop(self, event: Event) -> None:
        assert self.message["stop_reason"]
        self.over = True
        self.expected = set()
