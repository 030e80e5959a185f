"""Live updates: the transport, its binding to Socket.IO, and what OrderTrack sends over them."""
