"""The use cases, as functions: one transaction each, called by REST, pages, sockets and the command
line alike. They know neither requests nor sockets. A caller is a `policy.Caller`, what a
verified token proves; role and activity are read in the same transaction, so that they are never
stale.
"""
