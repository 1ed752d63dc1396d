"""Pure: from what is there to what to do and what to say."""

from plimsoll.operator.plan.planner import plan, room_for

__all__ = ["plan", "room_for"]
