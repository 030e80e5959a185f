"""Live updates: the relay that reads the log, fan-out, and the connections of both protocols."""
