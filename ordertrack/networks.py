"""Groups client addresses, so that limits hold for a client and not for each of its addresses."""


def network_of(address: str) -> str:
    """The key of a client: its IPv4 address, or the first 64 bits of its IPv6 address.

    The other 64 bits are the client's own choice (RFC 4291, 2.5.1).
    """
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
