"""The use cases, as functions: one transaction each, called by REST, pages, sockets and the command
line alike. They know neither requests nor sockets.

A use case gets a `policy.Caller`, which a verified token proves. It reads the caller's role in its
own statement or transaction, so that rights are never out of date.
"""
