"""What ends a group of ranks."""


class GroupError(RuntimeError):
    """The group is not whole any more; none of its members can go on."""
