"""The HTTP server: WSGI on eventlet's sockets, strict about what it reads, orderly in how it ends.

A greenlet serves one connection: it reads a request's head, calls the application, writes the
answer, and goes on with the next request, unless the application has taken the connection over for
a WebSocket (`transport.TAKE_OVER` in the environ), which ends the greenlet and frees all it had.

Why not eventlet.wsgi: its header parser (the standard library's, for e-mail), buffers and response
closures cost more than everything else on the way to a handshake; it stops serving for good when
descriptors run out; it accepts what proxies in front may read differently. The numbers are in
docs/adr/012-http-server.md.

A request is read whole, its body included, before the application is called.

What is refused, always with the connection closed afterwards: a head that is too large (431), a
target that is too long (414), a body that is too large (413), and (400) header lines that are
folded, have blanks around the name or control characters anywhere; line ends that are not CRLF; a
missing, second or malformed Host; a second Content-Length or one that is not a number;
Content-Length together with Transfer-Encoding. Those are what request smuggling is made of;
tests/server/test_http_oracles.py holds the reader against two others.

Who waits for a client waits for a bounded time: for a request, for its rest, and for the answer to
be taken. Connections that only wait are bounded as well (`waiting`), and all of them together with
the WebSockets by the descriptors that there are (`descriptors`).
"""
