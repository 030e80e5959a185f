"""Socket.IO and Engine.IO on this server's own WebSockets."""
