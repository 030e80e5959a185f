"""Addresses of clients: which of them are one client's."""


def network_of(address: str) -> str:
    """What stands for one client: an IPv4 address, or the half of an IPv6 one that it chose not."""
    if "." in address:
        return address.removeprefix("::ffff:")
    if "::" in address:
        head, _, tail = address.partition("::")
        groups = head.split(":") if head else []
        missing = 8 - len(groups) - (len(tail.split(":")) if tail else 0)
        groups += ["0"] * missing
    else:
        groups = address.split(":")
    return ":".join(groups[:4])
