"""Names that the operator and the engine share for a group: the pods that serve one replica together.

The operator sets the variables in every pod of a group; the engine reads them. Ordinal 0 leads, the others follow.
"""

POD = "PLIMSOLL_POD"
"""The environment variable with the pod's name; the number after its last dash is the pod's ordinal."""

POD_IP = "PLIMSOLL_POD_IP"
"""The one with the pod's own address, on which alone it listens for its group."""

GROUP_LEADER = "PLIMSOLL_GROUP_LEADER"
"""The one with HOST:PORT of the leader."""

GROUP_KEY = "PLIMSOLL_GROUP_KEY"
"""The one with the path of the file that holds the group's secret. The secret itself is in no variable."""

GROUP_PORT = 8002
"""Where the leader listens for its followers."""

GROUP_PORT_NAME = "group"
"""The same port's name in a pod."""

KEY_FOLDER = "/run/plimsoll/group"
"""Where the secret is mounted."""

KEY_NAME = "key"
"""Key of the Secret, and so the file's name."""

KEY_FILE = f"{KEY_FOLDER}/{KEY_NAME}"

KEY_BYTES = 32
"""The secret has at least so many random bytes, written as hexadecimal digits."""


def ordinal_of(pod: str) -> int | None:
    """The ordinal of the pod of that name; None where it is no pod of a group."""
    number = pod.rpartition("-")[2]
    return int(number) if number.isascii() and number.isdigit() else None
