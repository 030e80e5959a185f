"""The HTTP edges: each view parses, calls the service of the same name, presents the result."""
