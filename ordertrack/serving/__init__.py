"""The HTTP server: WSGI on eventlet's sockets, strict about what it reads, orderly in how it ends.

A greenlet serves one connection: it reads a request's head, calls the application, writes the
answer, and goes on with the next request, unless the application has taken the connection over for
a WebSocket (`transport.TAKE_OVER` in the environ), which ends the greenlet and frees all it had.

Why not eventlet.wsgi: its header parser (the standard library's, for e-mail), buffers and response
closures cost more than everything else on the way to a handshake; it stops serving for good when
descriptors run out; it accepts what proxies in front may read differently. The numbers are in
docs/adr/012-http-server.md.

What is refused, always with the connection closed afterwards: a head that is too large (431), a
target that is too long (414), and (400) header lines that are folded, have blanks around the name
or control characters anywhere; line ends that are not CRLF; a missing or second Host; a second
Content-Length or one that is not a number; Content-Length together with Transfer-Encoding. Those
are what request smuggling is made of.
"""

from ordertrack.serving.server import Server, Stopping, listen, raise_descriptor_limit, serve

__all__ = ["Server", "Stopping", "listen", "raise_descriptor_limit", "serve"]
