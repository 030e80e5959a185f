"""The web server: HTTP/1.1 and WebSockets for a WSGI application, on eventlet.

A greenlet serves each HTTP connection: it reads a request, calls the application and sends the
response, and goes on with the next request. An application that takes the connection over for a
WebSocket (`http_request.TAKE_OVER` in the environ) ends the greenlet and frees all that it held.

    server              listens, accepts, and stops in order
    http_connection     one client's connection: http_reader, http_request → http_response
    waiting_connections evicts connections that only wait, oldest first
    websocket           one WebSocket: ws_handshake, ws_frames, send_queue, heartbeat
    admission           evicts connections that have not authenticated
    loop, epoll         the event loop, and which sockets are ready
    descriptors         shares the file descriptors out between HTTP and WebSockets
    counters            counters for metrics

Why not eventlet.wsgi: its header parser (the standard library's, for e-mail), buffers and response
closures cost more than everything else on the way to a handshake; it stops serving for good when
descriptors run out; it accepts requests that proxies in front may read differently. The numbers are
in docs/adr/012-http-server.md.

A request is read whole, its body included, before the application is called. It is refused, and the
connection closed, if its head (431), its target (414) or its body (413) is too large, and (400) for
header lines that are folded or have blanks around the name; control characters; line ends that are
not CRLF; a missing, second or malformed Host; a second Content-Length or one that is not a number;
Content-Length together with Transfer-Encoding. Request smuggling is made of those;
tests/server/test_http_oracles.py compares the reader with two others.

Every wait for a client is bounded: for a request, for the rest of one, and for a response to be
read.
"""
